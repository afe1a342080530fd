/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the rules say of a destination. */
#pragma once

#include "maps.h"
#include "packet.h"

static __always_inline const struct ec_rule* rule_of(__u32 ruleset, const struct ec_ip* ip, bool ipv4) {
  struct ec_rule_key key = {.prefixlen = 32 + 128, .tree = EC_TREE(ruleset, ipv4), .ip = *ip};
  return bpf_map_lookup_elem(&rules, &key);
}

static __always_inline bool is_listed(__u32 ruleset, const struct ec_ip* ip) {
  const struct ec_rule* rule = rule_of(ruleset, ip, is_v4(ip));
  return rule && rule->verdict != EC_OTHERWISE;
}

/* Whether the packet, no later fragment, is one of those that the set names: 1 or 0. No value: there is no such set. */
static __always_inline const __u32* in_port_set(__u32 port_set, const struct packet* p) {
  bool has_ports = p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP;
  struct ec_port_key key = {.prefixlen = EC_PORT_BITS + (has_ports ? 16 : 0),
                            .port_set = port_set,
                            .proto = p->proto,
                            .port = has_ports ? p->dport : 0};
  return bpf_map_lookup_elem(&ports, &key);
}
