// SPDX-License-Identifier: Apache-2.0
#include "datapath/plan_maps.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "core/mark.h"
#include "datapath/maps.h"

namespace egressclass {
namespace {

struct BytesLess {
  template <class T>
  bool operator()(const T& a, const T& b) const {
    return std::memcmp(&a, &b, sizeof(T)) < 0;
  }
};

template <class Key, class Value>
using Entries = std::map<Key, Value, BytesLess>;

template <class Key, class Value>
Result<Entries<Key, Value>> read_entries(const BpfMap<Key, Value>& map) {
  auto list = map.entries();
  if (!list) return list.error();
  return Entries<Key, Value>(list->begin(), list->end());
}

/// Sets what differs, then deletes what is not wanted. `present`: what the map has, which nobody else writes.
template <class Key, class Value>
Status make_equal(const BpfMap<Key, Value>& map, const Entries<Key, Value>& present,
                  const Entries<Key, Value>& wanted) {
  for (const auto& [key, value] : wanted)
    if (const auto found = present.find(key);
        found == present.end() || std::memcmp(&found->second, &value, sizeof(value)) != 0)
      if (auto set = map.set(key, value); !set) return set;
  for (const auto& [key, value] : present)
    if (!wanted.contains(key))
      if (auto erased = map.erase(key); !erased) return erased;
  return Ok{};
}

ec_hop hop_entry(const PlannedHop& hop) {
  ec_hop entry{};
  entry.address = to_ec(hop.address);
  entry.path = hop.path == Path::kLocal ? EC_PATH_LOCAL : hop.path == Path::kTunnel ? EC_PATH_TUNNEL : EC_PATH_NEXTHOP;
  entry.ifindex = static_cast<__u32>(hop.ifindex);
  entry.families = (hop.v4 ? EC_IPV4 : 0U) | (hop.v6 ? EC_IPV6 : 0U);
  entry.seed = seed_of(hop.address);
  return entry;
}

ec_class class_entry(const PlannedClass& c, std::uint32_t ruleset) {
  ec_class entry{};
  entry.vni = c.vni;
  entry.mark = c.mark;
  entry.ruleset = ruleset;
  entry.flags = (c.spread_flows ? EC_SPREAD_FLOWS : 0U) | (c.otherwise_drop ? EC_OTHERWISE_DROP : 0U) |
                (c.other_family_bypass ? EC_OTHER_FAMILY_BYPASS : 0U) | (c.keep_flows ? EC_KEEP_FLOWS : 0U);
  for (const PlannedHop& hop : c.hops) {
    entry.hops[entry.hop_count] = hop_entry(hop);
    entry.families |= entry.hops[entry.hop_count++].families;
  }
  for (const PlannedSlot& slot : c.slots) {
    ec_slots& slots = slot.ip.is_v4() ? entry.slots4 : entry.slots6;
    slots.slot[slots.count++] = {.ip = to_ec(slot.ip), .id = slot.id, .seed = seed_of(slot.ip)};
  }
  return entry;
}

}  // namespace

Status write_gateways(const Plan& plan) {
  auto map = open_gateways_map();
  if (!map) return map.error();
  auto present = read_entries(*map);
  if (!present) return present.error();
  Entries<ec_ip, ec_gateway> wanted;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedHop& hop : c.hops) {
      if (hop.path == Path::kLocal) continue;
      const auto known = present->find(to_ec(hop.address));
      wanted[to_ec(hop.address)] = known == present->end() ? ec_gateway{} : known->second;
    }
  return make_equal(*map, *present, wanted);  // of those that stay, the datapath's own notes are not touched
}

Status write_classes(const Plan& plan, const std::map<std::string, std::uint32_t>& rulesets) {
  auto classes_map = open_classes_map();
  if (!classes_map) return classes_map.error();
  auto present_classes = read_entries(*classes_map);
  if (!present_classes) return present_classes.error();
  auto vnis_map = open_vnis_map();
  if (!vnis_map) return vnis_map.error();
  auto present_vnis = read_entries(*vnis_map);
  if (!present_vnis) return present_vnis.error();

  Entries<__u32, ec_class> classes;
  Entries<__u32, __u32> vnis;
  for (const PlannedClass& c : plan.classes) {
    ec_class entry = class_entry(c, rulesets.at(c.name));
    if (const auto present = present_classes->find(c.id); present != present_classes->end()) {
      entry.generation = present->second.generation;
      if (std::memcmp(&present->second, &entry, sizeof(entry)) != 0) ++entry.generation;
    }
    classes[c.id] = entry;
    vnis[c.vni] = c.id;
  }
  if (auto done = make_equal(*classes_map, *present_classes, classes); !done) return done;
  return make_equal(*vnis_map, *present_vnis, vnis);
}

Status write_egress_ips(const Plan& plan) {
  auto map = open_egress_ips_map();
  if (!map) return map.error();
  auto present = read_entries(*map);
  if (!present) return present.error();
  Entries<ec_ip, ec_egress_ip> wanted;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots)
      wanted[to_ec(slot.ip)] = {.ifindex = static_cast<__u32>(slot.ifindex), .own_network = slot.own_network ? 1U : 0U};
  return make_equal(*map, *present, wanted);
}

Status write_node(const Plan& plan, const Tunnel& tunnel, int gateway_ifindex) {
  ec_node node{};
  node.layout = EC_LAYOUT;
  node.applied = 1;
  node.tunnel_ifindex = static_cast<__u32>(tunnel.ifindex);
  node.tunnel_mtu = tunnel.mtu;
  if (plan.underlay4) node.underlay4 = to_ec(plan.underlay4->ip);
  if (plan.underlay6) node.underlay6 = to_ec(plan.underlay6->ip);
  node.mark_mask = plan.mark_mask;
  node.gateway_ifindex = static_cast<__u32>(gateway_ifindex);
  node.reply_mark = reply_mark(plan.mark_mask);
  node.probe_mark = probe_mark(plan.mark_mask);
  node.pending_mark = pending_mark(plan.mark_mask);
  node.bypass_mark = bypass_mark(plan.mark_mask);
  auto map = open_node_map();
  if (!map) return map.error();
  if (auto before = map->find(0); before && *before) std::ranges::copy((*before)->passed, std::begin(node.passed));
  while (node.passed[0] == 0)
    if (::getrandom(node.passed, sizeof(node.passed), 0) != sizeof(node.passed))
      return system_error("cannot get random bytes", "getrandom", errno);
  return map->set(0, node);
}

}  // namespace egressclass
