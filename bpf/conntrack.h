/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Asking the kernel's conntrack about flows, and giving it one. Declared by hand: vmlinux.h is not needed for a few
 * calls. They know TCP and UDP only (nf_conntrack_bpf.c, nf_nat_bpf.c; all of them: kernel 6.1 and newer). */
#pragma once

#include "maps.h"
#include "packet.h"

struct nf_conn { /* matched with the kernel's by libbpf */
  __u32 mark;
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
extern int bpf_ct_change_timeout(struct nf_conn* ct, __u32 milliseconds) __ksym;

struct nf_conn___init { /* one that is not in the table yet */
  __u32 mark;
} __attribute__((preserve_access_index));

enum nf_nat_manip_type { NF_NAT_MANIP_SRC, NF_NAT_MANIP_DST };
union nf_inet_addr {
  __u32 all[4];
};

extern struct nf_conn___init* bpf_skb_ct_alloc(struct __sk_buff* skb, struct bpf_sock_tuple* tuple, __u32 tuple__sz,
                                               struct ec_ct_opts* opts, __u32 opts__sz) __ksym;
extern int bpf_ct_set_nat_info(struct nf_conn___init* ct, union nf_inet_addr* address, int port,
                               enum nf_nat_manip_type manip) __ksym;
extern void bpf_ct_set_timeout(struct nf_conn___init* ct, __u32 milliseconds) __ksym;
extern struct nf_conn* bpf_ct_insert_entry(struct nf_conn___init* ct) __ksym;

/* How the kernel's functions want to know of a flow. Returns the length of the tuple; 0: they do not know the protocol.
 */
static __always_inline __u32 tuple_of(const struct ec_flow_key* key, struct bpf_sock_tuple* tuple,
                                      struct ec_ct_opts* opts) {
  if (key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP) return 0;
  opts->netns_id = -1; /* this one */
  opts->l4proto = key->proto;
  if (is_v4(&key->src)) {
    tuple->ipv4.saddr = key->src.w[3];
    tuple->ipv4.daddr = key->dst.w[3];
    tuple->ipv4.sport = key->sport;
    tuple->ipv4.dport = key->dport;
    return sizeof(tuple->ipv4);
  }
  __builtin_memcpy(tuple->ipv6.saddr, &key->src, sizeof(key->src));
  __builtin_memcpy(tuple->ipv6.daddr, &key->dst, sizeof(key->dst));
  tuple->ipv6.sport = key->sport;
  tuple->ipv6.dport = key->dport;
  return sizeof(tuple->ipv6);
}

/* The flow that has packets like this one, in either direction (after any NAT); to be released. */
static __always_inline struct nf_conn* lookup_flow(struct __sk_buff* skb, const struct ec_flow_key* key,
                                                   struct ec_ct_opts* opts) {
  struct bpf_sock_tuple tuple = {};
  __u32 length = tuple_of(key, &tuple, opts);
  if (length == 0) return 0;
  /* the verifier wants a length that it knows */
  if (length == sizeof(tuple.ipv4)) return bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), opts, sizeof(*opts));
  return bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), opts, sizeof(*opts));
}

enum tracked { UNTRACKED, TRACKED_ORIGINAL, TRACKED_REPLY };

/* Whether there is a flow that has packets like this one, and in which of its directions. */
__noinline int find_tracked(struct __sk_buff* skb, const struct ec_flow_key* key) {
  struct ec_ct_opts opts = {};
  if (!key) return UNTRACKED;
  struct nf_conn* ct = lookup_flow(skb, key, &opts);
  if (!ct) return UNTRACKED;
  bpf_ct_release(ct);
  return opts.dir ? TRACKED_REPLY : TRACKED_ORIGINAL;
}

/* Whether the egress IP with that id is one of the class's. */
static __always_inline bool is_egress_ip_of(const struct ec_class* c, __u32 id) {
  bool found = false;
  for (int i = 0; i < EC_MAX_SLOTS; i++) found |= id == c->slots4.slot[i].id || id == c->slots6.slot[i].id;
  return found && id;
}

/* Ends the flow to which the packet would belong, if it was translated for another class: the pod has another class
 * than when it was opened, or its address was another pod's. It would go on with the egress IP of that class, and nft
 * would drop it for as long as it tried. Returns whether there is such a flow, in which of its directions. In the
 * gateway's namespace. */
__noinline int end_flow_of_others(struct __sk_buff* skb, const struct ec_flow_key* key, const struct ec_class* c) {
  struct ec_ct_opts opts = {};
  if (!key || !c) return UNTRACKED;
  struct nf_conn* ct = lookup_flow(skb, key, &opts);
  if (!ct) return UNTRACKED;
  if (!opts.dir && !is_egress_ip_of(c, ct->mark & EC_MARK_ID)) bpf_ct_change_timeout(ct, 0);
  bpf_ct_release(ct);
  return opts.dir ? TRACKED_REPLY : TRACKED_ORIGINAL;
}
