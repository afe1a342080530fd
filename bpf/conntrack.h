/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Asking the kernel's conntrack about flows. Declared by hand: vmlinux.h is not needed for one call.
 * bpf_skb_ct_lookup: kernel 5.18 and newer, nf_conntrack_bpf.c. It knows TCP and UDP only. */
#pragma once

#include "maps.h"
#include "packet.h"

struct nf_conn { /* never looked into; but libbpf wants a whole type, to match it with the kernel's */
} __attribute__((preserve_access_index));

struct ec_ct_opts { /* the first 12 bytes of bpf_ct_opts: every kernel takes this size */
  __s32 netns_id;
  __s32 error;
  __u8 l4proto;
  __u8 dir;
  __u8 reserved[2];
};

extern struct nf_conn* bpf_skb_ct_lookup(struct __sk_buff* skb, struct bpf_sock_tuple* tuple, __u32 tuple__sz,
                                         struct ec_ct_opts* opts, __u32 opts__sz) __ksym;
extern void bpf_ct_release(struct nf_conn* ct) __ksym;

enum tracked { UNTRACKED, TRACKED_ORIGINAL, TRACKED_REPLY };

/* Whether there is a flow that has packets like this one, and in which of its directions (after any NAT). */
__noinline int find_tracked(struct __sk_buff* skb, const struct ec_flow_key* key) {
  if (!key) return UNTRACKED;
  struct bpf_sock_tuple tuple = {};
  struct ec_ct_opts opts = {.netns_id = -1 /* this one */, .l4proto = key->proto};
  __u32 size = sizeof(tuple.ipv6);
  if (key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP) return UNTRACKED;
  if (is_v4(&key->src)) {
    tuple.ipv4.saddr = key->src.w[3];
    tuple.ipv4.daddr = key->dst.w[3];
    tuple.ipv4.sport = key->sport;
    tuple.ipv4.dport = key->dport;
    size = sizeof(tuple.ipv4);
  } else {
    __builtin_memcpy(tuple.ipv6.saddr, &key->src, sizeof(key->src));
    __builtin_memcpy(tuple.ipv6.daddr, &key->dst, sizeof(key->dst));
    tuple.ipv6.sport = key->sport;
    tuple.ipv6.dport = key->dport;
  }
  struct nf_conn* ct = size == sizeof(tuple.ipv4)
                           ? bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts))
                           : bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
  if (!ct) return UNTRACKED;
  bpf_ct_release(ct);
  return opts.dir ? TRACKED_REPLY : TRACKED_ORIGINAL;
}
