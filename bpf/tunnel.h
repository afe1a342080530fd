/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a packet has to carry to go through egress0, and what one that came through it says. The outer family is that
 * of the addresses of both ends. */
#pragma once

#include "packet.h"

#define PACKET_HOST 0 /* linux/if_packet.h */

/* The inner source address is never that of a device: a receiver of VXLAN refuses its own. The receiver does not look
 * at the destination. */
static __always_inline void tunnel_macs(__u8 macs[2 * ETH_ALEN], const struct ec_ip* local,
                                        const struct ec_ip* remote) {
  __u32 ends[2] = {ec_hash_ip(0, remote), ec_hash_ip(0, local)};
  macs[0] = 0x02;
  macs[1] = 0xec;
  __builtin_memcpy(macs + 2, &ends[0], 4);
  macs[6] = 0x02;
  macs[7] = 0xed;
  __builtin_memcpy(macs + 8, &ends[1], 4);
}

static __always_inline long set_tunnel(struct __sk_buff* skb, __u32 vni, const struct ec_ip* local,
                                       const struct ec_ip* remote) {
  struct bpf_tunnel_key key = {.tunnel_id = vni, .tunnel_ttl = 64};
  __u64 flags;
  if (is_v4(remote)) {
    key.remote_ipv4 = bpf_ntohl(remote->w[3]); /* these fields are in host order */
    key.local_ipv4 = bpf_ntohl(local->w[3]);
    flags = BPF_F_ZERO_CSUM_TX;
  } else { /* a UDP checksum of zero is not for IPv6 */
    __builtin_memcpy(key.remote_ipv6, remote, sizeof(*remote));
    __builtin_memcpy(key.local_ipv6, local, sizeof(*local));
    flags = BPF_F_TUNINFO_IPV6;
  }
  long err = bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
  if (err) return err;
  __u8 macs[2 * ETH_ALEN];
  tunnel_macs(macs, local, remote);
  return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

struct tunneled {
  struct ec_ip sender, receiver;
  __u32 vni;
};

/* False: the packet did not come through the tunnel. */
static __always_inline bool read_tunnel(struct __sk_buff* skb, struct tunneled* t) {
  struct bpf_tunnel_key key = {};
  if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) == 0) {
    t->sender = ip_from_v4(bpf_htonl(key.remote_ipv4));
    t->receiver = ip_from_v4(bpf_htonl(key.local_ipv4));
  } else if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6) == 0) {
    __builtin_memcpy(&t->sender, key.remote_ipv6, sizeof(t->sender));
    __builtin_memcpy(&t->receiver, key.local_ipv6, sizeof(t->receiver));
  } else {
    return false;
  }
  t->vni = key.tunnel_id;
  return true;
}
