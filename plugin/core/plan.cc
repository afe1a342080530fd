// SPDX-License-Identifier: Apache-2.0
#include "core/plan.h"

#include <algorithm>

#include "core/mark.h"
#include "util/text.h"

namespace egressclass {
namespace {

std::string class_path(std::size_t index) { return "classes[" + std::to_string(index) + "]"; }

const NodeFacts::Address* find_address(const NodeFacts& facts, const Ip& ip) {
  const auto found = std::ranges::find(facts.addresses, ip, &NodeFacts::Address::ip);
  return found == facts.addresses.end() ? nullptr : &*found;
}

/// The interface on whose subnet `ip` is, else that of the gateway's own address.
int interface_for(const NodeFacts& facts, const Ip& ip, int otherwise) {
  int best = otherwise;
  unsigned longest = 0;
  for (const NodeFacts::Address& address : facts.addresses) {
    const unsigned family_bits = address.ip.is_v4() ? 96 : 0;
    if (address.prefix_length >= 128 || address.prefix_length <= family_bits || address.prefix_length <= longest)
      continue;
    Prefix subnet = {address.ip, address.prefix_length};
    for (unsigned bit = subnet.length; bit < 128; ++bit)
      subnet.ip.bytes[bit / 8] &= static_cast<std::uint8_t>(~(0x80U >> (bit % 8)));
    if (!subnet.contains(ip)) continue;
    longest = address.prefix_length;
    best = address.ifindex;
  }
  return best;
}

/*
 * Ids. A class keeps the id that it has: its running pods, marks and flows carry it. An id that running pods of
 * another class still carry is nobody's until they are gone. Explicit marks come first, the rest takes the lowest.
 */
class IdAssignment {
 public:
  IdAssignment(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems)
      : config_(config), facts_(facts), problems_(problems) {}

  std::map<std::string, std::uint32_t> assign() {
    for (std::size_t i = 0; i < config_.classes.size(); ++i)
      if (const ClassConfig& c = config_.classes[i]; c.mark) take_explicit(i, extract_bits(*c.mark, config_.mark_mask));
    for (const ClassConfig& c : config_.classes)
      if (const auto id = previous_id(c.name); !c.mark && id != 0 && !taken_.contains(id)) take(c.name, id);
    std::uint32_t next = 1;
    for (std::size_t i = 0; i < config_.classes.size(); ++i) {
      const ClassConfig& c = config_.classes[i];
      if (ids_.contains(c.name)) continue;
      while (taken_.contains(next) || facts_.attached.contains(next)) ++next;
      if (next > max_class_index(config_.mark_mask)) {
        problems_->push_back({class_path(i), in_quotes(c.name),
                              "no mark is left for this class: widen markMask, or end the pods of removed classes"});
        break;
      }
      if (previous_id(c.name) != 0) refuse_move(i, previous_id(c.name));
      take(c.name, next);
    }
    return ids_;
  }

 private:
  std::uint32_t previous_id(const std::string& name) const {
    // The kernel's entries outlive classes.json (`down` with pods): what running pods carry counts most.
    for (const auto& [id, owner] : facts_.attached)
      if (owner == name) return id;
    if (!facts_.previous) return 0;
    const auto found = facts_.previous->ids.find(name);
    return found == facts_.previous->ids.end() ? 0 : found->second;
  }

  void take(const std::string& name, std::uint32_t id) {
    ids_[name] = id;
    taken_.insert(id);
  }

  void take_explicit(std::size_t index, std::uint32_t id) {
    const std::string& name = config_.classes[index].name;
    if (const auto owner = facts_.attached.find(id); owner != facts_.attached.end() && owner->second != name)
      problems_->push_back({class_path(index) + ".mark", std::to_string(*config_.classes[index].mark),
                            "running pods of class \"" + owner->second + "\" carry this mark"});
    if (const auto old = previous_id(name); old != 0 && old != id) refuse_move(index, old);
    take(name, id);
  }

  void refuse_move(std::size_t index, std::uint32_t old) {
    if (!facts_.attached.contains(old)) return;
    problems_->push_back({class_path(index) + ".mark", in_quotes(config_.classes[index].name),
                          "the mark of a class with running pods on this node cannot change"});
  }

  const Config& config_;
  const NodeFacts& facts_;
  std::vector<ConfigProblem>* problems_;
  std::map<std::string, std::uint32_t> ids_;
  std::set<std::uint32_t> taken_;
};

PlannedClass plan_class(const ClassConfig& c, std::size_t index, const NodeFacts& facts,
                        std::vector<ConfigProblem>* problems) {
  PlannedClass planned;
  planned.name = c.name;
  planned.vni = c.vni;
  planned.gateway = c.gateway;
  planned.egress_ip = c.egress_ip;
  planned.destinations = c.destinations;
  planned.except = c.except;
  const NodeFacts::Address* gateway = find_address(facts, c.gateway);
  planned.local = gateway != nullptr;
  const std::string egress_path = class_path(index) + ".egressIPs[0]";

  if (const auto pod = facts.pods.find(c.egress_ip); pod != facts.pods.end())
    problems->push_back({egress_path, in_quotes(c.egress_ip.str()), "pod " + pod->second + " uses this address"});
  const NodeFacts::Address* present = find_address(facts, c.egress_ip);
  if (!planned.local) {
    if (present != nullptr && !facts.placed.contains(c.egress_ip))
      problems->push_back({egress_path, in_quotes(c.egress_ip.str()),
                           "this node uses the address, and is not the gateway of the class"});
    return planned;
  }

  planned.egress_ifindex = interface_for(facts, c.egress_ip, gateway->ifindex);
  if (present != nullptr) planned.egress_ifindex = present->ifindex;
  if (!c.interface.empty()) {
    const auto interface = facts.interfaces.find(c.interface);
    if (interface == facts.interfaces.end())
      problems->push_back({class_path(index) + ".gateways[0].interface", in_quotes(c.interface),
                           "this node, the gateway, has no such interface"});
    else
      planned.egress_ifindex = interface->second;
  }
  return planned;
}

}  // namespace

std::optional<Plan> make_plan(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems) {
  const std::size_t before = problems->size();
  Plan plan;
  plan.mark_mask = config.mark_mask;
  plan.tunnel_port = config.tunnel_port;

  // A gateway's address first: tunnel packets have to come from the address that the workers were told.
  const NodeFacts::Address* underlay = nullptr;
  for (const ClassConfig& c : config.classes)
    if (underlay == nullptr) underlay = find_address(facts, c.gateway);
  for (const NodeFacts::Address& address : facts.addresses)
    if (underlay == nullptr && address.ip.is_v4() &&
        std::ranges::any_of(config.nodes, [&](const Prefix& p) { return p.contains(address.ip); }))
      underlay = &address;
  if (underlay != nullptr) {
    plan.underlay = underlay->ip;
    plan.underlay_ifindex = underlay->ifindex;
  } else if (!config.classes.empty()) {
    problems->push_back({"nodes", "", "no IPv4 address of this node is among them"});
  }

  if (facts.previous && facts.previous->selection.mark_mask != config.mark_mask)
    problems->push_back(
        {"markMask", std::to_string(config.mark_mask), "differs from the one in force; run `egressctl down` first"});

  plan.applied.selection.annotations = config.annotations;
  plan.applied.selection.mark_mask = config.mark_mask;
  plan.applied.ids = IdAssignment(config, facts, problems).assign();
  for (std::size_t i = 0; i < config.classes.size(); ++i) {
    const ClassConfig& c = config.classes[i];
    PlannedClass planned = plan_class(c, i, facts, problems);
    planned.id = plan.applied.ids[c.name];
    planned.mark = deposit_bits(planned.id, config.mark_mask);
    plan.classes.push_back(std::move(planned));

    ClassConfig selection;
    selection.name = c.name;
    selection.vni = c.vni;
    selection.egress_ip = c.egress_ip;
    selection.select = c.select;
    selection.is_default = c.is_default;
    selection.entitled = c.entitled;
    plan.applied.selection.classes.push_back(std::move(selection));
    plan.never_steered.insert(Prefix::host(c.egress_ip));
  }

  plan.never_steered.insert(config.cluster_cidrs.begin(), config.cluster_cidrs.end());
  plan.never_steered.insert(config.nodes.begin(), config.nodes.end());
  for (const NodeFacts::Address& address : facts.addresses)  // but egress IPs of before: those are to go
    if (!facts.placed.contains(address.ip)) plan.never_steered.insert(Prefix::host(address.ip));
  plan.senders.insert(config.nodes.begin(), config.nodes.end());
  if (problems->size() != before) return std::nullopt;
  return plan;
}

}  // namespace egressclass
