// SPDX-License-Identifier: Apache-2.0
#include "core/plan.h"

#include <algorithm>

#include "../bpf/egressclass.h"
#include "core/mark.h"
#include "util/text.h"

namespace egressclass {
namespace {

std::string class_path(std::size_t index) { return "classes[" + std::to_string(index) + "]"; }

/// This node's addresses. There can be thousands, nearly all of them egress IPs.
class OwnAddresses {
 public:
  explicit OwnAddresses(const std::vector<NodeFacts::Address>& addresses) {
    for (const NodeFacts::Address& address : addresses) {
      by_ip_.try_emplace(address.ip, &address);
      if (address.prefix_length < 128 && address.prefix_length > (address.ip.is_v4() ? 96U : 0U) &&
          !address.ip.is_link_local())  // every pod's veth has one of those
        subnets_.emplace_back(subnet_of(address), address.ifindex);
    }
  }

  const NodeFacts::Address* find(const Ip& ip) const {
    const auto found = by_ip_.find(ip);
    return found == by_ip_.end() ? nullptr : found->second;
  }

  /// The interface on whose subnet `ip` is, else `otherwise`.
  int interface_for(const Ip& ip, int otherwise) const {
    int best = otherwise;
    unsigned longest = 0;
    for (const auto& [subnet, ifindex] : subnets_) {
      if (subnet.length <= longest || !subnet.contains(ip)) continue;
      longest = subnet.length;
      best = ifindex;
    }
    return best;
  }

 private:
  static Prefix subnet_of(const NodeFacts::Address& address) {
    Prefix subnet = {address.ip, address.prefix_length};
    for (unsigned bit = subnet.length; bit < 128; ++bit)
      subnet.ip.bytes[bit / 8] &= static_cast<std::uint8_t>(~(0x80U >> (bit % 8)));
    return subnet;
  }

  std::map<Ip, const NodeFacts::Address*> by_ip_;
  std::vector<std::pair<Prefix, int>> subnets_;  ///< with the ifindex
};

/*
 * Ids, each of which is a mark. A class keeps the id that it has: its running pods, marks and flows carry it. An id
 * that running pods of another class still carry is nobody's until they are gone. Explicit marks come first, the rest
 * takes the lowest.
 *
 * On a gateway, each egress IP of a class has an id too, by whose mark nft knows it: the class's own for one of each
 * family, one more for each of the others. An egress IP keeps the id that it has, since flows carry that.
 */
class IdAssignment {
 public:
  IdAssignment(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems)
      : config_(config), facts_(facts), problems_(problems), attached_(facts.attached) {
    for (const auto& [id, vni] : facts.orphaned)
      if (const auto same = std::ranges::find(config.classes, vni, &ClassConfig::vni); same != config.classes.end())
        attached_.try_emplace(id, same->name);
      else
        attached_.try_emplace(id, "?");
    for (const auto& [id, owner] : attached_) carried_.try_emplace(owner, id);
    if (!facts.previous) return;
    for (const auto& [slot, id] : facts.previous->slots) previous_slots_.insert(id);
  }

  std::map<std::string, std::uint32_t> assign_classes() {
    for (std::size_t i = 0; i < config_.classes.size(); ++i)
      if (const ClassConfig& c = config_.classes[i]; c.mark) take_explicit(i, extract_bits(*c.mark, config_.mark_mask));
    for (const ClassConfig& c : config_.classes)
      if (const auto id = previous_id(c.name); !c.mark && id != 0 && !taken_.contains(id)) take(c.name, id);
    for (std::size_t i = 0; i < config_.classes.size(); ++i) {
      const ClassConfig& c = config_.classes[i];
      if (ids_.contains(c.name)) continue;
      const auto id = next_free(i);
      if (!id) break;
      if (previous_id(c.name) != 0) refuse_move(i, previous_id(c.name));
      take(c.name, *id);
    }
    return ids_;
  }

  /// Of classes[index], after assign_classes(). In the order of `ips`.
  std::map<Ip, std::uint32_t> assign_slots(std::size_t index, const std::vector<Ip>& ips) {
    const std::string& name = config_.classes[index].name;
    const std::uint32_t own = ids_[name];
    std::map<Ip, std::uint32_t> slots;
    for (const Ip& ip : ips)
      if (const auto id = previous_slot(name, ip); id != 0 && (id == own || taken_.insert(id).second)) slots[ip] = id;
    for (const Ip& ip : ips) {
      if (slots.contains(ip)) continue;
      const bool own_is_free = std::ranges::none_of(
          slots, [&](const auto& slot) { return slot.second == own && slot.first.is_v4() == ip.is_v4(); });
      const auto id = own_is_free ? own : next_free(index);
      if (!id) break;
      taken_.insert(*id);
      slots[ip] = *id;
    }
    return slots;
  }

 private:
  std::uint32_t previous_id(const std::string& name) const {
    // The kernel's entries outlive classes.json (`down` with pods): what running pods carry counts most.
    if (const auto found = carried_.find(name); found != carried_.end()) return found->second;
    if (!facts_.previous) return 0;
    const auto found = facts_.previous->ids.find(name);
    return found == facts_.previous->ids.end() ? 0 : found->second;
  }

  std::uint32_t previous_slot(const std::string& name, const Ip& ip) const {
    if (!facts_.previous) return 0;
    const auto found = facts_.previous->slots.find({name, ip});
    return found == facts_.previous->slots.end() ? 0 : found->second;
  }

  /// Not one whose mark still meant something else a moment ago: packets that carry it may be on their way.
  bool had_other_meaning(std::uint32_t id) const { return previous_slots_.contains(id); }

  std::optional<std::uint32_t> next_free(std::size_t index) {
    while (taken_.contains(next_) || attached_.contains(next_) || had_other_meaning(next_)) ++next_;
    if (next_ <= std::min(max_class_index(config_.mark_mask), EC_MARK_ID)) return next_;
    problems_->push_back({class_path(index), in_quotes(config_.classes[index].name),
                          "no mark is left for this class: widen markMask, or end the pods of removed classes"});
    return std::nullopt;
  }

  void take(const std::string& name, std::uint32_t id) {
    ids_[name] = id;
    taken_.insert(id);
  }

  void take_explicit(std::size_t index, std::uint32_t id) {
    const std::string& name = config_.classes[index].name;
    if (const auto owner = attached_.find(id); owner != attached_.end() && owner->second != name)
      problems_->push_back({class_path(index) + ".mark", std::to_string(*config_.classes[index].mark),
                            "running pods of class \"" + owner->second + "\" carry this mark"});
    if (const auto old = previous_id(name); old != 0 && old != id) refuse_move(index, old);
    if (id > EC_MARK_ID)
      problems_->push_back({class_path(index) + ".mark", std::to_string(*config_.classes[index].mark),
                            "needs more than 30 bits of markMask: take a lower one"});
    take(name, id);
  }

  void refuse_move(std::size_t index, std::uint32_t old) {
    if (!attached_.contains(old)) return;
    problems_->push_back({class_path(index) + ".mark", in_quotes(config_.classes[index].name),
                          "the mark of a class with running pods on this node cannot change"});
  }

  const Config& config_;
  const NodeFacts& facts_;
  std::vector<ConfigProblem>* problems_;
  std::map<std::uint32_t, std::string> attached_;  ///< with those whose record is lost
  std::map<std::string, std::uint32_t> carried_;   ///< by running pods of the class
  std::set<std::uint32_t> previous_slots_;
  std::map<std::string, std::uint32_t> ids_;
  std::set<std::uint32_t> taken_;
  std::uint32_t next_ = 1;
};

/// What this node is to one class.
class ClassPlanner {
 public:
  ClassPlanner(const Config& config, std::size_t index, const NodeFacts& facts, const OwnAddresses& own,
               std::vector<ConfigProblem>* problems)
      : c_(config.classes[index]), index_(index), facts_(facts), own_(own), problems_(problems) {}

  PlannedClass plan(std::uint32_t id, std::uint32_t mark_mask, IdAssignment& ids) {
    PlannedClass planned;
    planned.name = c_.name;
    planned.id = id;
    planned.mark = deposit_bits(id, mark_mask);
    planned.vni = c_.vni;
    planned.destinations = c_.destinations;
    planned.except = c_.except;
    planned.otherwise_drop = c_.otherwise_drop;
    planned.other_family_bypass = c_.other_family_bypass;
    planned.spread_flows = c_.spread_flows;
    planned.keep_flows = c_.keep_flows;
    planned.force = c_.force;
    for (std::size_t i = 0; i < c_.gateways.size(); ++i) {
      planned.hops.push_back(plan_hop(i));
      check_egress_ips(i, planned.hops.back().path == Path::kLocal);
      if (planned.hops.back().path == Path::kLocal) add_slots(i, planned.slots);
    }
    std::vector<Ip> ips;
    for (const PlannedSlot& slot : planned.slots) ips.push_back(slot.ip);
    const auto assigned = ids.assign_slots(index_, ips);
    for (PlannedSlot& slot : planned.slots)
      if (const auto found = assigned.find(slot.ip); found != assigned.end()) slot.id = found->second;
    for (const bool v4 : {true, false})
      if (std::ranges::count(ips, v4, &Ip::is_v4) > EC_MAX_SLOTS)
        refuse(class_path(index_) + ".gateways", "",
               "several of these addresses are this node's; together they have more than 8 egress IPs of a family");
    return planned;
  }

 private:
  std::string gateway_path(std::size_t i) const { return class_path(index_) + ".gateways[" + std::to_string(i) + "]"; }

  void refuse(const std::string& path, const std::string& value, const std::string& reason) {
    problems_->push_back({path, value, reason});
  }

  /// For what this node does not have yet.
  void wait(const std::string& path, const std::string& value, const std::string& reason) {
    problems_->push_back({path, value, reason, true});
  }

  PlannedHop plan_hop(std::size_t i) {
    const Gateway& gateway = c_.gateways[i];
    PlannedHop hop;
    hop.address = gateway.address;
    const NodeFacts::Address* own = own_.find(gateway.address);
    if (gateway.via == Via::kNextHop) {
      hop.path = Path::kNextHop;
      hop.v4 = gateway.address.is_v4();
      hop.v6 = !hop.v4;
      if (own != nullptr)
        refuse(gateway_path(i) + ".address", in_quotes(gateway.address.str()),
               "this node itself has the next hop's address");
      hop.ifindex = interface_of(i, own_.interface_for(gateway.address, 0));
      if (hop.ifindex == 0 && gateway.interface.empty())
        wait(gateway_path(i) + ".address", in_quotes(gateway.address.str()),
             "no interface of this node is on the next hop's network: set \"interface\"");
      return hop;
    }
    hop.path = own != nullptr ? Path::kLocal : Path::kTunnel;
    for (const Ip& ip : gateway.egress_ips) (ip.is_v4() ? hop.v4 : hop.v6) = true;
    return hop;
  }

  /// That the configuration names for gateways[i], if it does.
  int interface_of(std::size_t i, int otherwise) {
    const std::string& name = c_.gateways[i].interface;
    if (name.empty()) return otherwise;
    const auto interface = facts_.interfaces.find(name);
    if (interface != facts_.interfaces.end()) return interface->second;
    wait(gateway_path(i) + ".interface", in_quotes(name), "this node has no such interface");
    return 0;
  }

  void check_egress_ips(std::size_t i, bool local) {
    const std::string path = (c_.gateways[i].has_own_ips ? gateway_path(i) : class_path(index_)) + ".egressIPs";
    for (const Ip& ip : c_.gateways[i].egress_ips) {
      if (const auto pod = facts_.pods.find(ip); pod != facts_.pods.end())
        refuse(path, in_quotes(ip.str()), "pod " + pod->second + " uses this address");
      if (!local && own_.find(ip) != nullptr && !facts_.held.contains(ip))
        refuse(
            path, in_quotes(ip.str()),
            "this node uses the address, and is not the gateway " + c_.gateways[i].address.str() + " that it is for");
    }
  }

  void add_slots(std::size_t i, std::vector<PlannedSlot>& slots) {
    const NodeFacts::Address* gateway = own_.find(c_.gateways[i].address);
    const int named = interface_of(i, 0);
    for (const Ip& ip : c_.gateways[i].egress_ips) {
      PlannedSlot slot;
      slot.ip = ip;
      slot.ifindex = own_.interface_for(ip, gateway->ifindex);
      // Where somebody else put it (a load balancer), it stays.
      if (const auto* present = own_.find(ip); present != nullptr && !facts_.held.contains(ip))
        slot.ifindex = present->ifindex;
      if (named != 0) slot.ifindex = named;
      slot.own_network = named != 0 || own_.interface_for(ip, 0) == slot.ifindex;
      slots.push_back(slot);
    }
  }

  const ClassConfig& c_;
  std::size_t index_;
  const NodeFacts& facts_;
  const OwnAddresses& own_;
  std::vector<ConfigProblem>* problems_;
};

/// This node's address of one family that the others send to. A gateway's address first: tunnel packets have to come
/// from the address that the workers were told.
std::optional<Underlay> find_underlay(const Config& config, const NodeFacts& facts, const OwnAddresses& own, bool v4) {
  const NodeFacts::Address* found = nullptr;
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways)
      if (found == nullptr && gateway.via == Via::kGateway && gateway.address.is_v4() == v4)
        found = own.find(gateway.address);
  for (const NodeFacts::Address& address : facts.addresses)
    if (found == nullptr && address.ip.is_v4() == v4 && !facts.held.contains(address.ip) &&
        std::ranges::any_of(config.nodes, [&](const Prefix& p) { return p.contains(address.ip); }))
      found = &address;
  if (found == nullptr) return std::nullopt;
  return Underlay{found->ip, found->ifindex};
}

/// A tunnel has both ends in one family.
void check_underlays(const Plan& plan, std::vector<ConfigProblem>* problems) {
  if (!plan.classes.empty() && !plan.underlay4 && !plan.underlay6)
    return problems->push_back({"nodes", "", "no address of this node is among them", true});
  for (std::size_t i = 0; i < plan.classes.size(); ++i)
    for (std::size_t j = 0; j < plan.classes[i].hops.size(); ++j) {
      const PlannedHop& hop = plan.classes[i].hops[j];
      if (hop.path != Path::kTunnel || (hop.address.is_v4() ? plan.underlay4 : plan.underlay6)) continue;
      problems->push_back({class_path(i) + ".gateways[" + std::to_string(j) + "].address", in_quotes(hop.address.str()),
                           std::string("is an ") + (hop.address.is_v4() ? "IPv4" : "IPv6") +
                               " address, and this node has none of that family among \"nodes\" to reach it from",
                           true});
    }
}

}  // namespace

std::optional<Plan> make_plan(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems) {
  const std::size_t before = problems->size();
  const OwnAddresses own(facts.addresses);
  Plan plan;
  plan.mark_mask = config.mark_mask;
  plan.tunnel_port = config.tunnel_port;
  plan.audited = config.audit.has_value();
  plan.underlay4 = find_underlay(config, facts, own, true);
  plan.underlay6 = find_underlay(config, facts, own, false);

  if (facts.previous && facts.previous->selection.mark_mask != config.mark_mask)
    problems->push_back(
        {"markMask", std::to_string(config.mark_mask), "differs from the one in force; run `egressctl down` first"});

  plan.applied.selection.annotations = config.annotations;
  plan.applied.selection.mark_mask = config.mark_mask;
  IdAssignment ids(config, facts, problems);
  plan.applied.ids = ids.assign_classes();
  for (std::size_t i = 0; i < config.classes.size(); ++i) {
    const ClassConfig& c = config.classes[i];
    plan.classes.push_back(
        ClassPlanner(config, i, facts, own, problems).plan(plan.applied.ids[c.name], config.mark_mask, ids));
    for (const PlannedSlot& slot : plan.classes.back().slots) plan.applied.slots[{c.name, slot.ip}] = slot.id;

    ClassConfig selection;
    selection.name = c.name;
    selection.vni = c.vni;
    selection.select = c.select;
    selection.is_default = c.is_default;
    selection.entitled = c.entitled;
    plan.applied.selection.classes.push_back(std::move(selection));
    for (const Gateway& gateway : c.gateways) {
      for (const Ip& ip : gateway.egress_ips) plan.never_steered.insert(Prefix::host(ip));
      if (gateway.via == Via::kNextHop) plan.never_steered.insert(Prefix::host(gateway.address));
    }
  }
  check_underlays(plan, problems);

  plan.never_steered.insert(config.cluster_cidrs.begin(), config.cluster_cidrs.end());
  plan.never_steered.insert(config.nodes.begin(), config.nodes.end());
  for (const NodeFacts::Address& address : facts.addresses)  // but egress IPs of before: those are to go
    if (!facts.held.contains(address.ip)) plan.never_steered.insert(Prefix::host(address.ip));
  plan.senders.insert(config.nodes.begin(), config.nodes.end());
  if (problems->size() != before) return std::nullopt;
  return plan;
}

}  // namespace egressclass
