// SPDX-License-Identifier: Apache-2.0
#include "datapath/node_datapath.h"

#include <bpf/bpf.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "cni/codes.h"
#include "core/mark.h"
#include "datapath/attachment_store.h"
#include "datapath/bpf_link.h"
#include "datapath/counters.h"
#include "datapath/device_program.h"
#include "datapath/egress_ips.h"
#include "datapath/expedite.h"
#include "datapath/flows.h"
#include "datapath/gateway_netns.h"
#include "datapath/gateway_rules.h"
#include "datapath/host_rules.h"
#include "datapath/in_netns.h"
#include "datapath/integrity.h"
#include "datapath/link_pins.h"
#include "datapath/maps.h"
#include "datapath/netlink.h"
#include "datapath/nft_table.h"
#include "datapath/orphans.h"
#include "datapath/plan_maps.h"
#include "datapath/pod_datapath.h"
#include "datapath/programs.h"
#include "datapath/rulesets.h"
#include "datapath/system_changes.h"
#include "datapath/tunnel.h"
#include "util/all_errors.h"
#include "util/file.h"
#include "util/spare_file.h"

namespace egressclass {
namespace {

/// The ids of a class's egress IPs here.
std::map<Ip, std::uint32_t> slots_of(const ec_class& entry) {
  std::map<Ip, std::uint32_t> slots;
  for (const ec_slots* family : {&entry.slots4, &entry.slots6})
    for (const ec_slot& slot : std::span(family->slot).first(std::min<std::size_t>(family->count, EC_MAX_SLOTS)))
      slots[from_ec(slot.ip)] = slot.id;
  return slots;
}

/// What an id means, of a class or of an egress IP: a class, by its VNI.
std::map<std::uint32_t, std::uint32_t> meanings(const Plan& plan) {
  std::map<std::uint32_t, std::uint32_t> vni_of;
  for (const PlannedClass& c : plan.classes) {
    vni_of[c.id] = c.vni;
    for (const PlannedSlot& slot : c.slots) vni_of[slot.id] = c.vni;
  }
  return vni_of;
}

/// Of egress IPs with these ids. `gateway`: no value when this node is none; then there are no flows.
Status end_all_flows(const std::set<std::uint32_t>& ids, const std::optional<GatewayNetns>& gateway) {
  if (!gateway || ids.empty()) return Ok{};
  const auto there = InNetns::enter(gateway->netns, paths::kGatewayNetns);
  if (!there) return there.error();
  for (const std::uint32_t id : ids)
    if (auto ended = end_flows(id, EC_MARK_ID); !ended) return ended;
  return Ok{};
}

/// Before an id gets a new meaning in nft, classes that are no more, or one of whose ids means another class, lead
/// nowhere: their packets are dropped (class_removed, unknown_class), not sent with another class's egress IP. Counters
/// start anew with the meaning.
Status retire_classes(const Plan& plan, const std::optional<GatewayNetns>& gateway) {
  const auto vni_of = meanings(plan);
  const auto means = [&](std::uint32_t id, std::uint32_t vni, bool nothing_will_do) {
    const auto found = vni_of.find(id);
    return found == vni_of.end() ? nothing_will_do : found->second == vni;
  };
  auto vnis = open_vnis_map();
  if (!vnis) return vnis.error();
  auto classes = open_classes_map();
  if (!classes) return classes.error();
  auto present = classes->entries();
  if (!present) return present.error();
  for (const auto& present_class : *present) {
    const __u32 id = present_class.first;
    const ec_class& entry = present_class.second;
    const auto slots = slots_of(entry);
    const bool stays = means(id, entry.vni, false) && std::ranges::all_of(slots, [&](const auto& slot) {
                         return means(slot.second, entry.vni, true);
                       });
    if (stays) continue;
    if (auto erased = vnis->erase(entry.vni); !erased) return erased;
    if (auto erased = classes->erase(id); !erased) return erased;
    if (auto erased = erase_counters(id); !erased) return erased;
    std::set<std::uint32_t> ids = {id};
    for (const auto& [ip, slot_id] : slots) ids.insert(slot_id);
    if (auto ended = end_all_flows(ids, gateway); !ended) return ended;
  }
  return Ok{};
}

/// Of egress IPs here whose flows are to end, because of what becomes of a class's egress IPs.
struct EndingIds {
  std::set<std::uint32_t> gone;  ///< the egress IP is no more: nft would drop them for as long as they try
  std::set<std::uint32_t> cut;   ///< "onChange": "cut": all of a class whose egress IPs change
};

/// By what is in the map of classes still.
Result<EndingIds> find_ending_ids(const Plan& plan) {
  EndingIds ending;
  auto classes = open_classes_map();
  if (!classes) return classes.error();
  auto entries = classes->entries();
  if (!entries) return entries.error();
  std::map<std::uint32_t, const ec_class*> by_id;
  for (const auto& [id, entry] : *entries) by_id[id] = &entry;
  for (const PlannedClass& c : plan.classes) {
    const auto found = by_id.find(c.id);
    if (found == by_id.end()) continue;
    std::map<Ip, std::uint32_t> wanted;
    for (const PlannedSlot& slot : c.slots) wanted[slot.ip] = slot.id;
    const auto present = slots_of(*found->second);
    if (present == wanted) continue;
    for (const auto& [ip, id] : present) {
      const auto kept = wanted.find(ip);
      if (kept == wanted.end() || kept->second != id) ending.gone.insert(id);
      if (!c.keep_flows) ending.cut.insert(id);
    }
  }
  return ending;
}

Status forward_on(const std::string& interface, bool v4, SystemChanges& changes) {
  return v4 ? changes.set_sysctl("net/ipv4/conf/" + interface + "/forwarding", "1") : changes.forward_ipv6();
}

/// On the interfaces of egress IPs: without it the kernel gives no route that leads out by there (bpf_fib_lookup).
Status forward_on_uplinks(const Netlink& netlink, const Plan& plan, SystemChanges& changes) {
  std::set<std::pair<int, bool>> forwarding;  // ifindex, IPv4
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) {
      if (!forwarding.emplace(slot.ifindex, slot.ip.is_v4()).second) continue;
      auto link = netlink.link(slot.ifindex);
      if (!link) return link.error();
      if (!*link) return make_error("the interface for an egress IP is gone", slot.ip.str());
      if (auto forwards = forward_on((*link)->name, slot.ip.is_v4(), changes); !forwards) return forwards;
      if (slot.ip.is_v4()) continue;
      if (const auto off = read_sysctl("net/ipv6/conf/" + (*link)->name + "/disable_ipv6"); !off || *off != "0")
        return make_error("no IPv6 on the interface of an egress IP",
                          slot.ip.str() + ": IPv6 is switched off on " + (*link)->name + " (sysctl disable_ipv6)");
    }
  return Ok{};
}

/// The longest packet that all of them take.
Result<unsigned> uplink_mtu(const Netlink& netlink, const Plan& plan) {
  std::set<int> uplinks;
  for (const auto& [ip, ifindex] : egress_ips_of(plan)) uplinks.insert(ifindex);
  unsigned least = UINT16_MAX;
  for (const int ifindex : uplinks) {
    auto link = netlink.link(ifindex);
    if (!link) return link.error();
    if (*link) least = std::min(least, (*link)->mtu);
  }
  return least;
}

bool is_gateway(const Plan& plan) {
  return std::ranges::any_of(plan.classes, [](const PlannedClass& c) { return !c.slots.empty(); });
}

/// No value: this node is no gateway. Nothing leads there yet.
Result<std::optional<GatewayNetns>> ensure_gateway(const Netlink& netlink, const Plan& plan, const Programs& programs,
                                                   const Tunnel& tunnel, SystemChanges& changes) {
  using Gateway = std::optional<GatewayNetns>;
  if (!is_gateway(plan)) return Gateway();
  if (auto forwards = forward_on_uplinks(netlink, plan, changes); !forwards) return forwards.error();
  auto mtu = uplink_mtu(netlink, plan);
  if (!mtu) return mtu.error();
  auto gateway = ensure_gateway_netns(netlink, *mtu, tunnel.mtu, plan.audited);
  if (!gateway) return gateway.error();
  if (auto held = hold_program(programs.gateway_out.get(), gateway->ec0, 0); !held) return held.error();
  const auto there = InNetns::enter(gateway->netns, paths::kGatewayNetns);
  if (!there) return there.error();
  if (auto held = hold_program(programs.gateway_in.get(), gateway->ec1, 0); !held) return held.error();
  return Gateway(std::move(*gateway));
}

/// If this node was one.
Status remove_gateway(const Netlink& netlink) {
  auto device = netlink.link(paths::kGatewayDevice);
  if (!device) return device.error();
  if (!*device && held_egress_ips().empty()) return Ok{};
  if (auto released = release_egress_ips(netlink); !released) return released;
  return remove_gateway_netns(netlink);
}

/// nexthop_in on the interfaces by which replies of next hops come, and on no other any more. Without forwarding there
/// the kernel would not say whether a next hop is its neighbour (bpf_fib_lookup).
Status watch_nexthops(const Netlink& netlink, const Plan& plan, const Programs& programs, SystemChanges& changes) {
  std::set<std::string> wanted;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedHop& hop : c.hops) {
      if (hop.path != Path::kNextHop) continue;
      auto link = netlink.link(hop.ifindex);
      if (!link) return link.error();
      if (!*link) return make_error("the interface towards a next hop is gone", hop.address.str());
      if (auto forwards = forward_on((*link)->name, hop.v4, changes); !forwards) return forwards;
      const std::string pin = nexthop_pin(hop.ifindex);
      if (!wanted.insert(pin).second) continue;
      if (auto done = attach_link(programs.nexthop_in.get(), hop.ifindex, Hook::kIngress, pin); !done) return done;
    }
  for (const std::string& pin : nexthop_pins())
    if (!wanted.contains(pin))
      if (auto removed = remove_link(pin); !removed) return removed;
  return Ok{};
}

/// The class ids that pods here carry.
Status note_attached(const Netlink& netlink, const std::vector<Attachment>& attachments, NodeFacts& facts) {
  auto orphans = find_orphans(netlink, attachments);
  if (!orphans) return orphans.error();
  for (const Orphan& orphan : *orphans) facts.orphaned[orphan.class_id] = orphan.class_vni;
  for (const Attachment& attachment : attachments) {
    facts.attached[attachment.class_id] = attachment.class_name;
    for (const Ip& ip : attachment.addresses) facts.pods[ip] = attachment.pod.name_space + "/" + attachment.pod.name;
  }
  return Ok{};
}

bool is_alive(const Netlink& netlink, const Attachment& attachment) {
  auto link = netlink.link(attachment.host_ifindex);
  return link && *link && (*link)->name == attachment.host_veth && (*link)->mac == attachment.host_mac;
}

/// A running pod for which another class is chosen now gets that, its record first. One that lost its classifier, or an
/// entry, gets what it should have.
Result<std::vector<Reclassed>> settle_pods(const Netlink& netlink, const Plan& plan,
                                           const std::vector<Attachment>& attachments) {
  std::vector<Reclassed> changed;
  if (attachments.empty()) return changed;
  const auto checker = PodChecker::open();
  if (!checker) return checker.error();
  for (const Attachment& attachment : attachments) {
    const Attachment wanted = reclassed(plan.applied, attachment);
    if (wanted != attachment)
      if (auto saved = replace_attachment(wanted); !saved) return saved.error();
    if (wanted.class_name != attachment.class_name) changed.push_back({wanted, attachment.class_name});
    if (checker->check(wanted) || !is_alive(netlink, wanted)) continue;
    if (auto attached = attach_pod(wanted); !attached && attached.error().code != codes::kCheckFailed)
      return attached.error();
  }
  return changed;
}

/// How many interfaces have a classifier of ours, whether or not there is a record for it.
std::size_t classified_interfaces() {
  const auto pins = classifier_pins();
  return static_cast<std::size_t>(std::ranges::count_if(pins, [](int ifindex) {
    auto link = read_link(classifier_pin(ifindex));
    return !link || (*link && (*link)->ifindex != 0);
  }));
}

/// Somebody removed the pins: pods that run are classified still (classify_again), maybe by maps to which nothing
/// leads. They get their links back, with the maps that are pinned; if those are new, they are empty, which closes the
/// pods.
Status restore_links(const Netlink& netlink) {
  std::vector<Attachment> alive = list_attachments();
  std::erase_if(alive, [&](const Attachment& attachment) {
    const auto link = read_link(classifier_pin(attachment.host_ifindex));
    return !is_alive(netlink, attachment) || (link && *link);
  });
  if (alive.empty()) return Ok{};
  if (auto installed = install_programs(); !installed) return installed.error();
  for (const Attachment& attachment : alive)
    if (auto attached = attach_pod(attachment); !attached && attached.error().code != codes::kCheckFailed)
      return attached.error();
  return Ok{};
}

}  // namespace

Result<NodeFacts> gather_public_facts() {
  NodeFacts facts;
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  auto addresses = netlink->addresses();
  if (!addresses) return addresses.error();
  auto tunnel = netlink->link(paths::kTunnelDevice);
  if (!tunnel) return tunnel.error();
  for (const InterfaceAddress& a : *addresses)
    if (!*tunnel || a.ifindex != (*tunnel)->ifindex) facts.addresses.push_back({a.ifindex, a.ip, a.prefix_length});
  const CHandle<struct if_nameindex, if_freenameindex> interfaces(if_nameindex());
  for (const auto* i = interfaces.get(); i != nullptr && i->if_index != 0; ++i)
    facts.interfaces[i->if_name] = static_cast<int>(i->if_index);
  auto applied = read_applied();
  if (applied && *applied) facts.previous = std::move(**applied);  // a broken one counts as none
  return facts;
}

Result<NodeFacts> gather_facts(const std::vector<Attachment>& attachments) {
  auto facts = gather_public_facts();
  if (!facts) return facts;
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  for (const auto& [ip, ifindex] : held_egress_ips()) facts->held.insert(ip);
  if (auto noted = note_attached(*netlink, attachments, *facts); !noted) return noted.error();
  return facts;
}

Result<RulesetChange> fit(const Plan& plan) {
  auto gateways_map = open_gateways_map();
  if (!gateways_map) return gateways_map.error();
  auto watched = gateways_map->keys();
  if (!watched) return watched.error();
  std::set<Ip> gateways;
  for (const ec_ip& address : *watched) gateways.insert(from_ec(address));
  for (const PlannedClass& c : plan.classes)
    for (const PlannedHop& hop : c.hops)
      if (hop.path != Path::kLocal) gateways.insert(hop.address);
  if (plan.classes.size() > EC_MAX_CLASSES)
    return make_error("too many classes", "the map `classes` holds " + std::to_string(EC_MAX_CLASSES) + ", these are " +
                                              std::to_string(plan.classes.size()));
  if (gateways.size() > EC_MAX_GATEWAYS)
    return make_error("too many gateways", "the map `gateways` holds " + std::to_string(EC_MAX_GATEWAYS) +
                                               "; the old ones and the new ones are " +
                                               std::to_string(gateways.size()));
  return RulesetChange::prepare(plan);
}

Result<std::vector<Reclassed>> realize(const Plan& plan, const Programs& programs, RulesetChange rulesets,
                                       const std::vector<Attachment>& attachments) {
  const Expedite expedite;
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  auto changes = SystemChanges::load();
  if (!changes) return changes.error();

  // Towards the outside first: nothing may be sent to a place that is not ready for it.
  Tunnel tunnel;
  if (!plan.classes.empty()) {
    auto ensured = ensure_tunnel(*netlink, plan, programs);
    if (!ensured) return ensured.error();
    tunnel = *ensured;
  }
  auto gateway = ensure_gateway(*netlink, plan, programs, tunnel, *changes);
  if (!gateway) return gateway.error();
  if (auto retired = retire_classes(plan, *gateway); !retired) return retired.error();
  if (auto applied = apply_host_rules(plan); !applied) return applied.error();
  if (*gateway)
    if (auto applied = apply_gateway_rules((*gateway)->netns, plan, tunnel.mtu); !applied) return applied.error();
  auto ending = find_ending_ids(plan);
  if (!ending) return ending.error();
  if (auto ended = end_all_flows(ending->gone, *gateway); !ended) return ended.error();
  if (*gateway)
    if (auto held = hold_egress_ips(*netlink, **gateway, programs, plan); !held) return held.error();
  if (auto written = write_gateways(plan); !written) return written.error();
  if (auto written = rulesets.write(); !written) return written.error();
  if (auto watched = watch_nexthops(*netlink, plan, programs, *changes); !watched) return watched.error();
  if (auto written = write_classes(plan, rulesets.numbers()); !written) return written.error();
  if (auto ended = end_all_flows(ending->cut, *gateway); !ended)
    return ended.error();  // not before: packets would open them again
  if (auto written = write_node(plan, tunnel, *gateway ? (*gateway)->ec0 : 0); !written) return written.error();

  auto settled = settle_pods(*netlink, plan, attachments);
  if (!settled) return settled.error();

  // Then what nothing leads to any more.
  if (auto removed = rulesets.remove_unused(); !removed) return removed.error();
  if (plan.classes.empty())
    if (auto removed = remove_tunnel(*netlink, plan.mark_mask); !removed) return removed.error();
  if (!*gateway)
    if (auto removed = remove_gateway(*netlink); !removed) return removed.error();
  if (auto noted = note_integrity(rulesets.entries()); !noted) return noted.error();
  const std::string applied = plan.applied.to_json();
  if (auto kept = write_reserved(paths::kLastClasses, applied); !kept) return kept.error();
  if (auto written = write_reserved(paths::kAppliedClasses, applied); !written) return written.error();
  return settled;
}

Result<std::size_t> tear_down() {
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  if (auto ours = refuse_other_layout(); !ours) return ours.error();

  // Before anything goes: classified traffic is dropped from here on.
  if (auto restored = restore_links(*netlink); !restored) return restored.error();
  std::uint32_t mark_mask = kDefaultMarkMask;
  if (auto node = read_node()) {
    mark_mask = node->mark_mask;
    node->applied = 0;
    auto map = open_node_map();
    if (!map) return map.error();
    if (auto set = map->set(0, *node); !set) return set.error();
  }

  AllErrors errors;
  for (const char* file : {paths::kAppliedClasses, paths::kAppliedConfig})
    if (::unlink(file) != 0 && errno != ENOENT) errors.add(system_error("cannot remove", file, errno));
  errors.add(remove_tunnel(*netlink, mark_mask));
  for (const std::string& pin : nexthop_pins()) errors.add(remove_link(pin));
  errors.add(release_egress_ips(*netlink));
  errors.add(remove_gateway_netns(*netlink));
  if (auto changes = SystemChanges::load()) {
    errors.add(changes->restore_sysctls());
  } else {
    errors.add(changes.error());
  }
  errors.add(remove_nft_table());

  // Pods whose veth is gone are no reason to stay.
  for (const Attachment& attachment : list_attachments()) {
    if (is_alive(*netlink, attachment)) continue;
    auto detached = detach_pod(attachment);
    errors.add(detached ? remove_attachment(attachment.key) : detached);
  }
  // The next try needs what says what is left.
  if (auto all = errors.status(); !all) return all.error();
  if (const std::size_t pods = classified_interfaces(); pods != 0) return pods;
  errors.add(remove_pins());
  for (const char* folder : {paths::kRunDir, paths::kLibDir}) {
    std::error_code ec;
    std::filesystem::remove_all(folder, ec);
    std::error_code unknown;  // under the unit they are mount points, which stay when all in them is gone
    if (ec && !std::filesystem::is_empty(folder, unknown))
      errors.add(system_error("cannot remove", folder, ec.value()));
  }
  if (auto all = errors.status(); !all) return all.error();
  return std::size_t{0};
}

}  // namespace egressclass
