/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Packets to and from a router on the link that is a class's gateway: they pass the node as they are, but for the TTL.
 */
#pragma once

#include <stddef.h>

#include "gateways.h"
#include "packet.h"

/* Of a packet that is routed by us, not by the kernel. Its TTL is more than 1. */
static __always_inline long decrement_ttl(struct __sk_buff* skb, const struct packet* p) {
  __u8 ttl = p->ttl - 1;
  if (!p->ipv4) return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &ttl, 1, 0);
  __u32 at = ETH_HLEN + offsetof(struct iphdr, ttl);
  __be16 before = bpf_htons(p->ttl << 8 | p->proto);
  __be16 after = bpf_htons(ttl << 8 | p->proto);
  long err = bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), before, after, sizeof(after));
  return err ? err : bpf_skb_store_bytes(skb, at, &ttl, 1, 0);
}

static __always_inline long redirect_to_neighbour(const struct ec_hop* hop) {
  struct bpf_redir_neigh neighbour = {.nh_family = AF_INET6};
  if (is_v4(&hop->address)) {
    neighbour.nh_family = AF_INET;
    neighbour.ipv4_nh = hop->address.w[3];
  } else {
    __builtin_memcpy(neighbour.ipv6_nh, &hop->address, sizeof(hop->address));
  }
  return bpf_redirect_neigh(hop->ifindex, &neighbour, sizeof(neighbour), 0);
}
