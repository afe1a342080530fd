// SPDX-License-Identifier: Apache-2.0
#include "ctl/takeover.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <map>
#include <set>

#include "core/mac.h"
#include "datapath/address_owners.h"
#include "datapath/netlink.h"

namespace egressclass::ctl {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{3};

/// That a configuration gives to other gateways than this node.
std::set<Ip> egress_ips_of_others(const std::optional<std::string>& text, const NodeFacts& facts) {
  std::set<Ip> ips;
  std::vector<ConfigProblem> problems;
  const auto config = text ? parse_config(*text, &problems) : std::nullopt;
  if (!config) return ips;
  for (const ClassConfig& c : config->classes)
    for (const Gateway& gateway : c.gateways)
      if (std::ranges::find(facts.addresses, gateway.address, &NodeFacts::Address::ip) == facts.addresses.end())
        ips.insert(gateway.egress_ips.begin(), gateway.egress_ips.end());
  return ips;
}

struct Coming {
  int ifindex = 0;
  std::size_t class_index = 0;
};

std::map<Ip, Coming> coming_to(const Plan& plan, const NodeFacts& facts) {
  std::map<Ip, Coming> coming;
  std::set<Ip> forced;
  for (std::size_t i = 0; i < plan.classes.size(); ++i)
    for (const PlannedSlot& slot : plan.classes[i].slots) {
      coming[slot.ip] = {slot.ifindex, i};
      if (plan.classes[i].force) forced.insert(slot.ip);
    }
  for (const Ip& ip : forced) coming.erase(ip);
  for (const NodeFacts::Address& present : facts.addresses) coming.erase(present.ip);
  for (const Ip& ip : facts.held) coming.erase(ip);
  return coming;
}

}  // namespace

std::vector<ConfigProblem> held_by_others(const Plan& plan, const NodeFacts& facts,
                                          const std::optional<std::string>& in_force) {
  const auto coming = coming_to(plan, facts);
  if (coming.empty()) return {};
  std::map<Ip, int> asked;
  for (const auto& [ip, place] : coming) asked[ip] = place.ifindex;

  const auto deadline = Clock::now() + kPatience;
  auto netlink = Netlink::open();
  auto owners = netlink ? find_owners(*netlink, asked) : Result<std::map<Ip, AddressOwner>>(netlink.error());
  if (owners && !owners->empty())
    for (const Ip& ip : egress_ips_of_others(in_force, facts)) owners->erase(ip);
  while (owners && !owners->empty() && Clock::now() < deadline) {
    std::erase_if(asked, [&](const auto& one) { return !owners->contains(one.first); });
    owners = find_owners(*netlink, asked);
  }
  if (!owners) {
    std::fprintf(stderr, "egressctl: warning: cannot tell whether another machine has an egress IP: %s: %s\n",
                 owners.error().msg.c_str(), owners.error().details.c_str());
    return {};
  }
  std::vector<ConfigProblem> problems;
  for (const auto& [ip, owner] : *owners)
    problems.push_back({"classes[" + std::to_string(coming.at(ip).class_index) + "]", ip.str(),
                        "another machine has this egress IP: " + mac_text(owner.mac) + " answers on " +
                            owner.interface + "; take it away there first, or set \"force\": true on the class",
                        true});
  return problems;
}

}  // namespace egressclass::ctl
