/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which gateway of a class a flow takes, and whether it answers. No daemon watches them: while packets go to one and
 * nothing comes back, the packets themselves ask. */
#pragma once

#include "count.h"
#include "packet.h"
#include "tunnel.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline void set_mark(struct __sk_buff* skb, const struct ec_node* n, __u32 mark) {
  skb->mark = (skb->mark & ~n->mark_mask) | mark;
}

static __always_inline const struct ec_ip* underlay_towards(const struct ec_node* n, const struct ec_ip* remote) {
  return is_v4(remote) ? &n->underlay4 : &n->underlay6;
}

static __always_inline void gateway_seen(struct ec_gateway* gateway) {
  __u64 now = bpf_ktime_get_ns();
  /* not with every packet: the cache line is shared by all CPUs */
  if (gateway->unanswered || now - gateway->last_seen_ns > EC_PROBE_INTERVAL_NS / 4) {
    gateway->last_seen_ns = now;
    gateway->unanswered = 0;
  }
}

/* A trimmed copy of the packet at hand, with VNI 0, which the gateway's tunnel_in returns. The packet itself may go
 * another way, or back to the pod: it stays as it is. */
static __always_inline void probe_by_tunnel(struct __sk_buff* skb, const struct ec_node* n,
                                            const struct ec_ip* gateway) {
  __u32 mark = skb->mark;
  __u8 macs[2 * ETH_ALEN];
  if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs))) return;
  if (set_tunnel(skb, EC_VNI_PROBE, underlay_towards(n, gateway), gateway) == 0) {
    set_mark(skb, n, n->probe_mark);
    bpf_clone_redirect(skb, n->tunnel_ifindex, 0);
  }
  bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
  skb->mark = mark;
}

static __always_inline bool neighbour_is_known(struct __sk_buff* skb, const struct ec_hop* hop) {
  struct bpf_fib_lookup fib = {.ifindex = hop->ifindex, .family = AF_INET6};
  if (is_v4(&hop->address)) {
    fib.family = AF_INET;
    fib.ipv4_dst = hop->address.w[3];
  } else {
    __builtin_memcpy(fib.ipv6_dst, &hop->address, sizeof(hop->address));
  }
  return bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT) == BPF_FIB_LKUP_RET_SUCCESS;
}

/* Whether the gateway answers, as far as is known; and asks it when it was silent for a while. */
__noinline int hop_answers(struct __sk_buff* skb, const struct ec_node* n, __u32 class_id, const struct ec_hop* hop) {
  if (!n || !hop) return false;
  if (hop->path == EC_PATH_LOCAL) return true;
  struct ec_ip address = hop->address;
  struct ec_gateway* gateway = bpf_map_lookup_elem(&gateways, &address);
  if (!gateway) return false;
  __u64 now = bpf_ktime_get_ns();
  __u64 last_probe = gateway->last_probe_ns;
  bool answers = gateway->unanswered < EC_PROBES_UNANSWERED;
  if (now - gateway->last_seen_ns < EC_PROBE_INTERVAL_NS || now - last_probe < EC_PROBE_INTERVAL_NS) return answers;
  if (__sync_val_compare_and_swap(&gateway->last_probe_ns, last_probe, now) != last_probe) return answers;

  if (hop->path == EC_PATH_NEXTHOP) {
    if (neighbour_is_known(skb, hop)) {
      gateway_seen(gateway);
    } else {
      __sync_fetch_and_add(&gateway->unanswered, 1);
      add_to_counter(class_id, EC_PROBE_SENT, 1,
                     skb->len); /* this packet goes, whatever is known: so the kernel asks for it */
    }
    return true;
  }
  __sync_fetch_and_add(&gateway->unanswered, 1);
  probe_by_tunnel(skb, n, &address);
  add_to_counter(class_id, EC_PROBE_SENT, 1, skb->len);
  return answers;
}

__noinline int hop_answered(const struct ec_hop* hop) {
  if (!hop) return false;
  if (hop->path == EC_PATH_LOCAL) return true;
  struct ec_ip address = hop->address;
  const struct ec_gateway* gateway = bpf_map_lookup_elem(&gateways, &address);
  return gateway && gateway->unanswered < EC_PROBES_UNANSWERED;
}

/* The index of the gateway with that address, if it can send any of the families; EC_MAX_HOPS: there is none. */
__noinline __u32 find_hop(const struct ec_class* c, const struct ec_ip* address, __u32 families) {
  if (!c || !address) return EC_MAX_HOPS;
  __u32 found = EC_MAX_HOPS;
  for (__u32 i = 0; i < EC_MAX_HOPS && i < c->hop_count; i++)
    if (same_ip(&c->hops[i].address, address) && (c->hops[i].families & families)) found = i;
  return found;
}

static __always_inline const struct ec_hop* hop_at(const struct ec_class* c, __u32 index) {
  if (index >= EC_MAX_HOPS) return 0;
  return &c->hops[BOUNDED(index, EC_MAX_HOPS)];
}

static __always_inline const struct ec_hop* hop_with_address(const struct ec_class* c, const struct ec_ip* address,
                                                             __u32 families) {
  return hop_at(c, find_hop(c, address, families));
}

/* What the choice goes by. */
static __always_inline __u32 spread_key(const struct ec_class* c, const struct packet* p) {
  __u32 key = ec_hash_ip(0, &p->src);
  if (!(c->flags & EC_SPREAD_FLOWS)) return key;
  return ec_mix(ec_mix(ec_hash_ip(key, &p->dst), (__u32)p->sport << 16 | p->dport), p->proto);
}

/* The index of the gateway with the highest weight among those that can send the family, and that answered if so
 * wanted; EC_MAX_HOPS: there is none. The best one so far is one number, of weight and index: to the verifier all are
 * alike. */
__noinline __u32 best_hop(const struct ec_class* c, __u32 key, __u32 family, int answered_only) {
  if (!c) return EC_MAX_HOPS;
  __u64 best = 0;
  for (__u32 i = 0; i < EC_MAX_HOPS && i < c->hop_count; i++) {
    const struct ec_hop* hop = &c->hops[i];
    __u64 score = (__u64)ec_weight(key, hop->seed) << 32 | (i + 1);
    if (score <= best || !(hop->families & family) || (answered_only && !hop_answered(hop))) continue;
    best = score;
  }
  return best ? (__u32)best - 1 : EC_MAX_HOPS;
}

/* The index of the first gateway that answers after all, when none is known to. Each is asked: any of them may be the
 * one that comes back. */
__noinline __u32 ask_hops(struct __sk_buff* skb, const struct ec_node* n, __u32 class_id, const struct ec_class* c,
                          __u32 family) {
  if (!n || !c) return EC_MAX_HOPS;
  for (__u32 i = 0; i < EC_MAX_HOPS && i < c->hop_count; i++)
    if ((c->hops[i].families & family) && hop_answers(skb, n, class_id, &c->hops[i])) return i;
  return EC_MAX_HOPS;
}

/* The gateway for a new flow; 0: none answers. The one that is due is asked even when it did not answer: so it is
 * found out that it is back. */
static __always_inline const struct ec_hop* choose_hop(struct __sk_buff* skb, const struct ec_node* n, __u32 class_id,
                                                       const struct ec_class* c, const struct packet* p) {
  __u32 key = spread_key(c, p);
  const struct ec_hop* due = hop_at(c, best_hop(c, key, family_of(p), false));
  if (!due || hop_answers(skb, n, class_id, due)) return due;
  const struct ec_hop* other = hop_at(c, best_hop(c, key, family_of(p), true));
  if (!other) return hop_at(c, ask_hops(skb, n, class_id, c, family_of(p)));
  return hop_answers(skb, n, class_id, other) ? other : 0;
}
