// SPDX-License-Identifier: Apache-2.0
// The maps of bpf/maps.h by name and type, and addresses in their form.
#pragma once

#include <cstring>

#include "../bpf/egressclass.h"
#include "core/ip.h"
#include "datapath/bpf_map.h"

namespace egressclass {

inline ec_ip to_ec(const Ip& ip) {
  ec_ip out;
  std::memcpy(&out, ip.bytes.data(), sizeof(out));
  return out;
}

inline Ip from_ec(const ec_ip& ip) {
  Ip out;
  std::memcpy(out.bytes.data(), &ip, sizeof(ip));
  return out;
}

/// Of a hop, or a slot, for ec_weight().
inline std::uint32_t seed_of(const Ip& ip) {
  const ec_ip address = to_ec(ip);
  return ec_finish(ec_hash_ip(0, &address));
}

inline auto open_node_map() { return BpfMap<__u32, ec_node>::open("node"); }
inline auto open_attachments_map() { return BpfMap<__u32, ec_attachment>::open("attachments"); }
inline auto open_endpoints_map() { return BpfMap<ec_ip, ec_endpoint>::open("endpoints"); }
inline auto open_classes_map() { return BpfMap<__u32, ec_class>::open("classes"); }
inline auto open_vnis_map() { return BpfMap<__u32, __u32>::open("vnis"); }
inline auto open_egress_ips_map() { return BpfMap<ec_ip, ec_egress_ip>::open("egress_ips"); }
inline auto open_gateways_map() { return BpfMap<ec_ip, ec_gateway>::open("gateways"); }
inline auto open_rules_map() { return BpfMap<ec_rule_key, ec_rule>::open("rules"); }
inline auto open_ports_map() { return BpfMap<ec_port_key, __u32>::open("ports"); }

/// The node's entry; no value when the datapath is not there at all, or is of another layout.
inline std::optional<ec_node> read_node() {
  auto map = open_node_map();
  if (!map) return std::nullopt;
  auto node = map->find(0);
  if (!node || !*node || (*node)->layout != EC_LAYOUT) return std::nullopt;
  return **node;
}

}  // namespace egressclass
