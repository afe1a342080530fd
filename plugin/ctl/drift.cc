// SPDX-License-Identifier: Apache-2.0
#include "ctl/drift.h"

#include <algorithm>
#include <map>
#include <optional>

#include "core/config.h"
#include "core/plan.h"
#include "datapath/egress_ips.h"
#include "datapath/maps.h"
#include "datapath/node_datapath.h"
#include "datapath/paths.h"
#include "datapath/route_lookup.h"
#include "datapath/tunnel.h"
#include "util/file.h"

namespace egressclass::ctl {
namespace {

const Ip* any_egress_ip(const Plan& plan, bool v4) {
  for (const PlannedClass& c : plan.classes)
    if (const auto slot = std::ranges::find(c.slots, v4, [](const PlannedSlot& s) { return s.ip.is_v4(); });
        slot != c.slots.end())
      return &slot->ip;
  return nullptr;
}

/// One of the class's destinations to which there is no route. A few tell: they share the default.
const Prefix* unreachable(const RouteLookup& routes, const PlannedClass& c, const PlannedSlot& slot, int ec0) {
  constexpr std::size_t kEnough = 4;
  std::size_t asked = 0;
  for (const Destination& destination : c.destinations) {
    if (destination.prefix.ip.is_v4() != slot.ip.is_v4()) continue;
    if (asked++ == kEnough) break;
    const Ip to = sample_of(destination.prefix);
    // As gateway_out asks (bpf/gateway.h).
    if (const auto own = routes.find_by(slot.ifindex, to); slot.own_network && own && *own) continue;
    if (const auto route = routes.find(slot.ip, to, ec0); route && !*route) return &destination.prefix;
  }
  return nullptr;
}

constexpr const char* kAgain = ": run `egressctl apply`";

class Comparison {
 public:
  explicit Comparison(const Netlink& netlink) : netlink_(netlink) {}

  void underlay(const std::optional<Underlay>& now, const ec_ip& in_force) {
    const Ip before = from_ec(in_force);
    const Ip after = now ? now->ip : Ip{};
    if (before == after) return;
    const std::string was = before == Ip{} ? "none" : before.str();
    found_.push_back("this node's address among `nodes` is " + (after == Ip{} ? "none" : after.str()) +
                     " now, and was " + was + " at the last apply" + kAgain);
  }

  void tunnel(const Plan& plan, unsigned in_force) {
    const auto mtu = tunnel_mtu(netlink_, plan);
    if (mtu && in_force != 0 && *mtu != in_force)
      found_.push_back("packets of " + std::to_string(*mtu) + " bytes fit into the tunnel now, and it was made for " +
                       std::to_string(in_force) + kAgain);
  }

  void hops(const PlannedClass& c, const ec_class& entry) {
    for (std::size_t i = 0; i < c.hops.size() && i < entry.hop_count; ++i) {
      const PlannedHop& hop = c.hops[i];
      const bool was_local = entry.hops[i].path == EC_PATH_LOCAL;
      if (was_local != (hop.path == Path::kLocal))
        found_.push_back("this node " + std::string(was_local ? "has lost" : "has got") +
                         " the address of the gateway " + hop.address.str() + " since the last apply" + kAgain);
      if (hop.path == Path::kNextHop && entry.hops[i].ifindex != static_cast<__u32>(hop.ifindex))
        found_.push_back("the next hop " + hop.address.str() + " is reached by " + name(hop.ifindex) + " now" + kAgain);
    }
  }

  void egress_ips(const PlannedClass& c, const std::map<Ip, int>& held) {
    for (const PlannedSlot& slot : c.slots)
      if (const auto on = held.find(slot.ip); on != held.end() && on->second != slot.ifindex)
        found_.push_back("egress IP " + slot.ip.str() + " belongs on " + name(slot.ifindex) + " now" + kAgain);
  }

  std::vector<std::string> take() { return std::move(found_); }

 private:
  std::string name(int ifindex) const {
    auto link = netlink_.link(ifindex);
    return link && *link ? (*link)->name : "interface " + std::to_string(ifindex);
  }

  const Netlink& netlink_;
  std::vector<std::string> found_;
};

}  // namespace

std::vector<std::string> lacks(const Config& config, const Plan& plan) {
  std::vector<std::string> lines;
  for (const bool v4 : {true, false})
    if (const Ip* egress_ip = any_egress_ip(plan, v4); egress_ip != nullptr && !(v4 ? plan.underlay4 : plan.underlay6))
      if (std::ranges::any_of(config.nodes, [&](const Prefix& node) { return node.ip.is_v4() == v4; }))
        lines.push_back("this node has the egress IP " + egress_ip->str() + ", but no " + (v4 ? "IPv4" : "IPv6") +
                        " address among `nodes`, where others have one: not yet, or not any more");
  const auto routes = RouteLookup::open();
  const auto node = read_node();
  if (!routes || !node || node->gateway_ifindex == 0) return lines;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots)
      if (const Prefix* to = unreachable(*routes, c, slot, static_cast<int>(node->gateway_ifindex)); to != nullptr)
        lines.push_back("this node has no route from egress IP " + slot.ip.str() + " to " + to->str() + " of class \"" +
                        c.name + "\"");
  return lines;
}

std::vector<std::string> drift(const Netlink& netlink, const std::vector<Attachment>& attachments) {
  auto text = read_file(paths::kAppliedConfig, kMaxConfigBytes);
  const auto node = read_node();
  if (!text || !*text || !node) return {};
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(**text, &problems);
  auto facts = gather_facts(attachments);
  auto classes = open_classes_map();
  if (!config || !facts || !classes) return {};  // others say so

  const auto plan = make_plan(*config, *facts, &problems);
  std::vector<std::string> found;
  found.reserve(problems.size());
  for (const ConfigProblem& problem : problems)
    found.push_back(problem.path + (problem.value.empty() ? "" : ": " + problem.value) + ": " + problem.reason);
  if (!plan) return found;

  const auto held = held_egress_ips();
  Comparison comparison(netlink);
  comparison.underlay(plan->underlay4, node->underlay4);
  comparison.underlay(plan->underlay6, node->underlay6);
  comparison.tunnel(*plan, node->tunnel_mtu);
  for (const PlannedClass& c : plan->classes) {
    if (auto entry = classes->find(c.id); entry && *entry) comparison.hops(c, **entry);
    comparison.egress_ips(c, held);
  }
  found = lacks(*config, *plan);
  for (std::string& line : comparison.take()) found.push_back(std::move(line));
  return found;
}

}  // namespace egressclass::ctl
