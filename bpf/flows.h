/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What becomes of a packet that a pod sends beyond the cluster, and that all packets of a flow share it. */
#pragma once

#include "conntrack.h"
#include "gateways.h"
#include "rules.h"

struct decision {
  __u32 verdict;            /* enum ec_verdict; 0: drop */
  __u32 reason;             /* of the drop: enum ec_event */
  const struct ec_hop* hop; /* EC_STEER */
};

static __always_inline void flow_key_of(const struct packet* p, struct ec_flow_key* key) {
  key->src = p->src;
  key->dst = p->dst;
  key->sport = p->sport;
  key->dport = p->dport;
  key->proto = p->proto;
}

/* What was sent by whoever sent that: the other direction. */
static __always_inline void reverse_flow_key_of(const struct packet* p, struct ec_flow_key* key) {
  key->src = p->dst;
  key->dst = p->src;
  bool has_ports = p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP;
  key->sport = has_ports ? p->dport : p->sport; /* the id of an echo is the same both ways */
  key->dport = has_ports ? p->sport : 0;
  key->proto = p->proto;
}

static __always_inline struct ec_fragment_key fragment_key_of(const struct packet* p) {
  struct ec_fragment_key key = {.src = p->src, .dst = p->dst, .id = p->fragment_id, .proto = p->ipv4 ? p->proto : 0};
  return key;
}

/* The flow of the packet that an ICMP error is about, as that packet has it, or as its receiver answers it. False: the
 * error does not say, or is about what others sent or received. */
__noinline int read_flow_in_error(struct __sk_buff* skb, const struct packet* error, struct ec_flow_key* key,
                                  int reverse) {
  struct packet about = {};
  if (!error || !key) return false;
  if (!read_packet_in_error(skb, error, &about)) return false;
  if (!(reverse ? same_ip(&about.dst, &error->src) : same_ip(&about.src, &error->dst))) return false;
  if (reverse)
    reverse_flow_key_of(&about, key);
  else
    flow_key_of(&about, key);
  return true;
}

static __always_inline bool opens_flow(const struct packet* p) {
  if (p->proto == IPPROTO_TCP) return (p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
  return p->proto == IPPROTO_SCTP && p->type == SCTP_INIT;
}

/* The entry of a flow that the pod opened. One that does not count any more is removed, lest it counts again with the
 * next packet. */
static __always_inline struct ec_flow* own_flow(const struct packet* p, const struct ec_flow_key* key) {
  struct ec_flow* flow = bpf_map_lookup_elem(&flows, key);
  if (!flow) return 0;
  __u64 now = bpf_ktime_get_ns();
  __s64 idle = now - flow->last_seen_ns;                                    /* negative: another CPU has just set it */
  bool is_older = p->proto == IPPROTO_TCP && (p->tcp_flags & TCP_FLAG_SYN); /* and had the same ports */
  if (is_older || (key->proto != IPPROTO_TCP && idle > EC_IDLE_FLOW_NS)) {
    bpf_map_delete_elem(&flows, key);
    return 0;
  }
  if (idle > EC_FLOW_REFRESH_NS) flow->last_seen_ns = now;
  return flow;
}

/*
 * Whether the packet of a pod answers a flow that others opened to it. Such packets go back the way the request
 * came, whatever the pod's class.
 *
 * TCP and UDP are decided by conntrack, once for each flow. The rest is not in the kfunc's reach: echo replies, and
 * SCTP that does not open a flow, are taken at their word. nft verifies what is said here, with conntrack, before the
 * packet leaves: being wrong can cost a packet, never leak one.
 */
static __always_inline bool answers_inbound(struct __sk_buff* skb, const struct packet* p,
                                            const struct ec_flow_key* key) {
  if (opens_flow(p)) return false;
  if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) return find_tracked(skb, key) == TRACKED_REPLY;
  return p->proto == IPPROTO_SCTP || is_echo_reply(p);
}

static __always_inline bool remember_flow(const struct ec_flow_key* key, const struct ec_hop* hop, __u32 class_id,
                                          __u32 generation) {
  struct ec_flow flow = {
      .last_seen_ns = bpf_ktime_get_ns(), .gateway = hop->address, .class_id = class_id, .generation = generation};
  return bpf_map_update_elem(&flows, key, &flow, BPF_ANY) == 0;
}

static __always_inline struct decision bypassed(void) {
  struct decision d = {.verdict = EC_BYPASS};
  return d;
}

static __always_inline struct decision refused(enum ec_event reason) {
  struct decision d = {.reason = reason};
  return d;
}

static __always_inline struct decision steered(const struct ec_hop* hop) {
  struct decision d = {.verdict = EC_STEER, .reason = EC_DROP_GATEWAY_UNREACHABLE, .hop = hop};
  if (!hop) d.verdict = 0;
  return d;
}

/* The gateway of a flow that is known: its own one, while that is configured and answers. */
static __always_inline struct decision steer_flow(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                                  const struct ec_class* c, const struct packet* p,
                                                  const struct ec_flow_key* key, const struct ec_hop* own) {
  if (own && hop_answers(skb, n, id, own)) return steered(own);
  const struct ec_hop* hop = choose_hop(skb, n, id, c, p);
  if (hop) remember_flow(key, hop, id, c->generation);
  return steered(hop);
}

/* A packet with its transport header. `key`: the flow by which it is decided; of an ICMP error, that which it is
 * about. */
static __always_inline struct decision decide_flow(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                                   const struct ec_class* c, const struct packet* p,
                                                   const struct ec_flow_key* key, bool icmp_error) {
  struct ec_flow* flow = own_flow(p, key);
  const struct ec_hop* own = 0;
  bool is_own = flow && flow->class_id == id;
  if (is_own) {
    struct ec_ip gateway = flow->gateway;
    own = hop_with_address(c, &gateway, family_of(p));
    if (flow->generation == c->generation || ((c->flags & EC_KEEP_FLOWS) && own)) {
      if (flow->generation != c->generation) flow->generation = c->generation;
      return steer_flow(skb, n, id, c, p, key, own);
    }
  }
  const struct ec_rule* rule = rule_of(c->ruleset, &p->dst, p->ipv4);
  if (!rule) return refused(EC_DROP_RULES_MISSING);
  bool matches = rule->verdict == EC_STEER;
  if (matches && rule->port_set) {
    const __u32* listed = in_port_set(rule->port_set, p);
    if (!listed) return refused(EC_DROP_RULES_MISSING);
    matches = *listed;
  }
  if (!matches && (rule->verdict == EC_BYPASS || !(c->flags & EC_OTHERWISE_DROP))) {
    if (flow && !icmp_error) bpf_map_delete_elem(&flows, key);
    return bypassed();
  }
  bool replies = icmp_error ? find_tracked(skb, key) == TRACKED_REPLY : !flow && answers_inbound(skb, p, key);
  if (replies) {
    if (flow && !icmp_error) bpf_map_delete_elem(&flows, key);
    struct decision d = {.verdict = EC_REPLY};
    return d;
  }
  if (!matches) return refused(EC_DROP_OTHERWISE);
  if (!(c->families & family_of(p))) return (c->flags & EC_OTHER_FAMILY_BYPASS) ? bypassed() : refused(EC_DROP_FAMILY);
  const struct ec_hop* hop = choose_hop(skb, n, id, c, p);
  if (hop && !icmp_error) remember_flow(key, hop, id, c->generation);
  return steered(hop);
}

/* A fragment without a transport header goes the way of the first one. Ahead of that, it can only go where every
 * fragment of the pod to that address would. */
static __always_inline struct decision decide_later_fragment(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                                             const struct ec_class* c, const struct packet* p) {
  struct ec_fragment_key key = fragment_key_of(p);
  const struct ec_fragment* first = bpf_map_lookup_elem(&fragments, &key);
  if (first) {
    struct ec_ip gateway = first->gateway;
    if (first->verdict == EC_STEER) return steered(hop_with_address(c, &gateway, family_of(p)));
    struct decision d = {.verdict = first->verdict, .reason = first->reason};
    return d;
  }
  const struct ec_rule* rule = rule_of(c->ruleset, &p->dst, p->ipv4);
  if (!rule) return refused(EC_DROP_RULES_MISSING);
  if (rule->verdict != EC_STEER)
    return (rule->verdict == EC_BYPASS || !(c->flags & EC_OTHERWISE_DROP)) ? bypassed() : refused(EC_DROP_OTHERWISE);
  if (rule->port_set || ((c->flags & EC_SPREAD_FLOWS) && c->hop_count > 1)) return refused(EC_DROP_FRAGMENT);
  if (!(c->families & family_of(p))) return (c->flags & EC_OTHER_FAMILY_BYPASS) ? bypassed() : refused(EC_DROP_FAMILY);
  return steered(choose_hop(skb, n, id, c, p));
}

/* For the later ones. */
__noinline int remember_first_fragment(const struct packet* p, __u32 verdict, __u32 reason, const struct ec_hop* hop) {
  if (!p) return 0;
  struct ec_fragment_key key = fragment_key_of(p);
  struct ec_fragment record = {.verdict = verdict, .reason = reason};
  if (hop) record.gateway = hop->address;
  return bpf_map_update_elem(&fragments, &key, &record, BPF_ANY);
}

static __always_inline struct decision decide(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                              const struct ec_class* c, struct packet* p) {
  if (p->later_fragment) return decide_later_fragment(skb, n, id, c, p);
  if (!read_transport(skb, p)) return refused(EC_DROP_NOT_IP);

  struct ec_flow_key key = {};
  flow_key_of(p, &key);
  bool icmp_error = is_icmp_error(p) && read_flow_in_error(skb, p, &key, true);
  struct decision d = decide_flow(skb, n, id, c, p, &key, icmp_error);
  if (p->first_fragment) remember_first_fragment(p, d.verdict, d.reason, d.hop);
  return d;
}
