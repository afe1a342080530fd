/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Asking the kernel's conntrack who opened a flow. Declared by hand: vmlinux.h is not needed for one call.
 * bpf_skb_ct_lookup: kernel 5.18 and newer, nf_conntrack_bpf.c. */
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

/* Whether the IPv4 tuple is the reply direction of a tracked flow: that of its answers, after any DNAT. */
static __always_inline bool is_reply_of_flow(struct __sk_buff* skb, __u8 proto, __be32 src, __be32 dst, __be16 sport,
                                             __be16 dport) {
  struct bpf_sock_tuple tuple = {.ipv4 = {.saddr = src, .daddr = dst, .sport = sport, .dport = dport}};
  struct ec_ct_opts opts = {.netns_id = -1 /* this one */, .l4proto = proto};
  struct nf_conn* ct = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
  if (!ct) return false;
  bpf_ct_release(ct);
  return opts.dir; /* IP_CT_DIR_REPLY */
}

/* Whether the pod opened the flow that this packet of it belongs to, as far as that is remembered. */
static __always_inline bool is_own_flow(const struct packet* p, const struct ec_flow_key* key) {
  if ((p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN) return true; /* opens it, whatever is stale */
  struct ec_flow* flow = bpf_map_lookup_elem(&flows, key);
  if (!flow) return false;
  if (p->tcp_flags & TCP_FLAG_SYN) return false; /* SYN+ACK: an older one had the same ports */
  __u64 now = bpf_ktime_get_ns();
  __s64 idle = now - flow->last_seen_ns; /* negative: another CPU has just set it */
  if (p->proto == IPPROTO_UDP && idle > EC_UDP_FLOW_NS) return false;
  if (idle > EC_FLOW_REFRESH_NS) flow->last_seen_ns = now;
  return true;
}

static __always_inline bool answers_flow_from_outside(struct __sk_buff* skb, struct packet* p) {
  if (!read_ports(skb, p->l4, p)) return false;
  struct ec_flow_key key = {.src = p->src, .dst = p->dst, .sport = p->sport, .dport = p->dport, .proto = p->proto};
  bool own = is_own_flow(p, &key);
  if (!own && is_reply_of_flow(skb, p->proto, p->src.w[3], p->dst.w[3], p->sport, p->dport)) {
    bpf_map_delete_elem(&flows, &key);
    return true;
  }
  if (!own || (p->tcp_flags & TCP_FLAG_SYN)) {
    struct ec_flow flow = {.last_seen_ns = bpf_ktime_get_ns()};
    bpf_map_update_elem(&flows, &key, &flow, BPF_ANY);
  }
  return false;
}

/*
 * Whether the packet of a pod answers a connection that others opened to it. Such packets go back the way the
 * request came, whatever the pod's class.
 *
 * TCP and UDP are decided by conntrack here, once for each flow. ICMP is not in the kfunc's reach: echo replies are
 * taken at their word, and an error about a packet that the pod received counts by the flow of that packet. nft
 * verifies what is said here, with conntrack, before the packet leaves: being wrong can cost a packet, never leak one.
 */
static __always_inline bool answers_inbound(struct __sk_buff* skb, struct packet* p) {
  struct ec_fragment_key fragment = {.src = p->src, .dst = p->dst, .id = p->fragment_id, .proto = p->proto};
  if (!p->ipv4) return false;
  if (p->later_fragment) return bpf_map_lookup_elem(&fragments, &fragment);

  bool answers = false;
  if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
    answers = answers_flow_from_outside(skb, p);
  } else if (p->proto == IPPROTO_ICMP) {
    struct {
      struct icmp_header icmp;
      struct iphdr ip;
      __be16 ports[2];
    } error;
    if (bpf_skb_load_bytes(skb, p->l4, &error.icmp, sizeof(error.icmp)) < 0) return false;
    if (error.icmp.type == ICMP_ECHOREPLY) {
      answers = true;
    } else if (error.icmp.type != ICMP_ECHO && bpf_skb_load_bytes(skb, p->l4, &error, sizeof(error)) == 0 &&
               error.ip.ihl == 5 && error.ip.daddr == p->src.w[3] &&
               (error.ip.protocol == IPPROTO_TCP || error.ip.protocol == IPPROTO_UDP)) {
      /* what the pod received, the other way round: what it would answer */
      answers =
          is_reply_of_flow(skb, error.ip.protocol, error.ip.daddr, error.ip.saddr, error.ports[1], error.ports[0]);
    }
  }
  if (p->first_fragment) {
    __u32 verdict = EC_BYPASS;
    if (answers)
      bpf_map_update_elem(&fragments, &fragment, &verdict, BPF_ANY);
    else
      bpf_map_delete_elem(&fragments, &fragment); /* of an earlier datagram with this id */
  }
  return answers;
}
