/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The way into the gateway's namespace, and what leaves it. */
#pragma once

#include <linux/if_ether.h>

#include "count.h"
#include "gateways.h"
#include "maps.h"
#include "packet.h"
#include "slots.h"
#include "too_big.h"
#include "tunnel.h"

/* Newer than Debian 12's headers: linux/bpf.h of 6.3. */
#define FIB_LOOKUP_SKIP_NEIGH 4

/* To ec1, past everybody else's programs and rules; gateway_in goes on there. `mark`: see egressclass.h. */
static __always_inline int to_gateway(struct __sk_buff* skb, const struct ec_node* n, __u32 class_id, __u32 mark) {
  __u32 mtu = 0;
  /* redirect_peer drops in silence when the device is gone; to bpf_check_mtu, 0 is the packet's own device */
  if (!n->gateway_ifindex || bpf_check_mtu(skb, n->gateway_ifindex, &mtu, 0, 0) < 0)
    return drop(skb, class_id, EC_DROP_GATEWAY_GONE);
  skb->mark = mark;
  bpf_skb_change_type(skb, PACKET_HOST);
  return bpf_redirect_peer(n->gateway_ifindex, 0);
}

/* Of the packet, or of each of those into which the device cuts it: without the frame's header. */
static __always_inline __u16 length_on_the_wire(struct __sk_buff* skb) {
  __u32 headers = skb->gso_size ? headers_length(skb) : 0;
  return (headers ? headers + skb->gso_size : skb->len) - ETH_HLEN;
}

static __always_inline void ask_for_way(struct bpf_fib_lookup* fib, const struct packet* p, __u16 length) {
  struct bpf_fib_lookup question = {.tot_len = length};
  *fib = question;
  if (p->ipv4) {
    fib->family = AF_INET;
    fib->ipv4_src = p->src.w[3];
    fib->ipv4_dst = p->dst.w[3];
  } else {
    fib->family = AF_INET6;
    __builtin_memcpy(fib->ipv6_src, &p->src, sizeof(p->src));
    __builtin_memcpy(fib->ipv6_dst, &p->dst, sizeof(p->dst));
  }
}

/* By the interface to whose network the egress IP belongs, if there is a route by it, whatever is said of other
 * interfaces; else as the host routes what has that source. */
__noinline int find_way_out(struct __sk_buff* skb, const struct packet* p, __u32 own_ifindex,
                            struct bpf_fib_lookup* fib) {
  if (!p || !fib) return BPF_FIB_LKUP_RET_NOT_FWDED;
  __u16 length = length_on_the_wire(skb);
  if (own_ifindex) {
    ask_for_way(fib, p, length);
    fib->ifindex = own_ifindex;
    int found =
        bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_DIRECT | FIB_LOOKUP_SKIP_NEIGH);
    /* With IPv6, the kernel may name a route by another interface, though it was asked for this one. */
    if ((found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_FRAG_NEEDED) && fib->ifindex == own_ifindex)
      return found;
  }
  ask_for_way(fib, p, length);
  fib->ifindex = skb->ifindex;
  return bpf_fib_lookup(skb, fib, sizeof(*fib), FIB_LOOKUP_SKIP_NEIGH);
}

/* A route, or an interface, may take less than ec1 does. Whoever sends is told, by conntrack in the namespace. */
static __always_inline int tell_sender_too_big(struct __sk_buff* skb, const struct ec_node* n, const struct packet* p,
                                               __u32 mtu) {
  if (!p->dont_fragment) return drop(skb, 0, EC_DROP_TOO_LONG);
  count(skb, 0, EC_TOO_BIG);
  if (answer_too_big(skb, p, p->ipv4 ? &n->underlay4 : &n->underlay6, mtu)) return TC_ACT_SHOT;
  return to_gateway(skb, n, 0, 0);
}

static __always_inline int leave_by_uplink(struct __sk_buff* skb, const struct ec_node* n, const struct packet* p,
                                           const struct ec_egress_ip* from) {
  struct bpf_fib_lookup fib = {};
  switch (find_way_out(skb, p, from->own_network ? from->ifindex : 0, &fib)) {
    case BPF_FIB_LKUP_RET_SUCCESS:
      break;
    case BPF_FIB_LKUP_RET_FRAG_NEEDED:
      return tell_sender_too_big(skb, n, p, fib.mtu_result);
    default:
      return drop(skb, 0, EC_DROP_NO_ROUTE);
  }
  struct bpf_redir_neigh neighbour = {.nh_family = fib.family};
  if (fib.family == AF_INET)
    neighbour.ipv4_nh = fib.ipv4_dst;
  else
    __builtin_memcpy(neighbour.ipv6_nh, fib.ipv6_dst, sizeof(neighbour.ipv6_nh));
  return bpf_redirect_neigh(fib.ifindex, &neighbour, sizeof(neighbour), 0);
}

/* A reply for a pod of another node. */
static __always_inline int return_to_worker(struct __sk_buff* skb, const struct ec_node* n, const struct packet* p,
                                            const struct ec_worker* worker) {
  __u32 id = worker->class_id;
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!c || !slots_of(c, p->ipv4)->count) return drop(skb, id, EC_DROP_CLASS_REMOVED);
  struct ec_ip gateway = worker->gateway;
  struct ec_ip to = worker->node;
  if (set_tunnel(skb, c->vni, &gateway, &to)) return drop(skb, id, EC_DROP_TUNNEL_FAILED);
  count(skb, id, EC_GATEWAY_BACK);
  set_mark(skb, n, c->mark); /* tunnel_out drops what has none */
  return bpf_redirect(n->tunnel_ifindex, 0);
}
