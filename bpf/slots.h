/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which of a class's egress IPs on this gateway a packet gets. nft translates by its id; conntrack makes it last. */
#pragma once

#include "conntrack.h"
#include "flows.h"

#define FIRST_PORT 1024
#define PORT_COUNT 64512

/* Whether a port that is taken at random is free. reply: of the egress IP and the remote endpoint; its dport is the
 * port then. */
static __always_inline bool try_port(struct __sk_buff* skb, struct ec_flow_key* reply) {
  reply->dport = bpf_htons(FIRST_PORT + bpf_get_prandom_u32() % PORT_COUNT);
  return find_tracked(skb, reply) == UNTRACKED;
}

/* While a third of the ports is free, the kernel finds one. It looks from a random port on, through 240 of the next
 * ones; so later it gives up in a long run of taken ports, and where it does find one, it makes the runs longer. */
#define SAMPLE 64
#define FREE_OF_SAMPLE 20
#define FREE_AT_ONCE 3 /* mostly it is as clear as that */

struct sample {
  struct __sk_buff* skb;
  struct ec_flow_key reply;
  __u32 free;
};

static long take_sample(__u64 i, void* context) {
  struct sample* s = context;
  if (try_port(s->skb, &s->reply)) s->free++;
  return s->free == FREE_OF_SAMPLE || (i < FREE_AT_ONCE && s->free == FREE_AT_ONCE);
}

__noinline int has_many_ports(struct __sk_buff* skb, const struct ec_flow_key* reply) {
  if (!reply) return 0;
  struct sample s = {.skb = skb, .reply = *reply};
  return bpf_loop(SAMPLE, take_sample, &s, 0) < SAMPLE;
}

/* Tries to find a free port when there are few. Each is taken at random, so of what is found come no runs; when one of
 * twenty is free, the tries miss it once in 10^11 times. */
#define TRIES 512

__noinline int find_port(struct __sk_buff* skb, struct ec_flow_key* reply) {
  if (!reply) return 0;
  for (int i = 0; i < TRIES; i++)
    if (try_port(skb, reply)) return 1;
  return 0;
}

#define UNUSED_FLOW_MSEC 10000 /* its first packet sets the protocol's own timeout */

/* Makes the flow that a packet with this key opens one that is translated to reply's dst and dport. The kernel refuses
 * what another processor has taken meanwhile; then it looks for a port itself, as for any flow. */
__noinline int open_flow(struct __sk_buff* skb, const struct ec_flow_key* key, const struct ec_flow_key* reply) {
  struct bpf_sock_tuple tuple = {};
  struct ec_ct_opts opts = {};
  if (!key || !reply) return 0;
  __u32 length = tuple_of(key, &tuple, &opts);
  if (length == 0) return 0;
  struct nf_conn___init* coming = length == sizeof(tuple.ipv4)
                                      ? bpf_skb_ct_alloc(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts))
                                      : bpf_skb_ct_alloc(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
  if (!coming) return 0;
  union nf_inet_addr egress_ip = {};
  if (is_v4(&reply->dst))
    egress_ip.all[0] = reply->dst.w[3];
  else
    __builtin_memcpy(&egress_ip, &reply->dst, sizeof(egress_ip));
  bpf_ct_set_nat_info(coming, &egress_ip, bpf_ntohs(reply->dport), NF_NAT_MANIP_SRC);
  bpf_ct_set_timeout(coming, UNUSED_FLOW_MSEC);
  struct nf_conn* flow = bpf_ct_insert_entry(coming);
  if (!flow) return 0;
  bpf_ct_release(flow);
  return 1;
}

static __always_inline const struct ec_slots* slots_of(const struct ec_class* c, bool ipv4) {
  return ipv4 ? &c->slots4 : &c->slots6;
}

/* The index of the slot with the highest weight below `bound`; EC_MAX_SLOTS: there is none. */
__noinline __u32 best_slot(const struct ec_slots* slots, __u32 key, __u64 bound) {
  if (!slots) return EC_MAX_SLOTS;
  __u64 best = 0;
  for (__u32 i = 0; i < EC_MAX_SLOTS && i < slots->count; i++) {
    __u64 score = (__u64)ec_weight(key, slots->slot[i].seed) << 32 | (i + 1);
    if (score > best && score >> 32 < bound) best = score;
  }
  return best ? (__u32)best - 1 : EC_MAX_SLOTS;
}

/* The id of the egress IP for a flow that is opened: the first one, in the order in which the pod prefers them, that
 * has many ports left towards the remote endpoint. When none has, the first one that has any; then the flow is given to
 * the kernel with its port. 0: none has any. */
__noinline __u32 slot_for_flow(struct __sk_buff* skb, const struct ec_slots* slots, const struct ec_flow_key* key,
                               bool last_ports) {
  if (!slots || !key) return 0;
  __u32 pod = ec_hash_ip(0, &key->src);
  __u64 bound = 1ULL << 32;
  for (int i = 0; i < EC_MAX_SLOTS; i++) {
    __u32 index = best_slot(slots, pod, bound);
    if (index >= EC_MAX_SLOTS) break;
    const struct ec_slot* slot = &slots->slot[BOUNDED(index, EC_MAX_SLOTS)];
    struct ec_flow_key reply = {.src = key->dst, .dst = slot->ip, .sport = key->dport, .proto = key->proto};
    if (!last_ports && has_many_ports(skb, &reply)) return slot->id;
    if (last_ports && find_port(skb, &reply)) {
      open_flow(skb, key, &reply);
      return slot->id;
    }
    bound = ec_weight(pod, slot->seed);
  }
  return 0;
}

/* The id of the pod's egress IP, whatever ports that has. */
static __always_inline __u32 preferred_slot(const struct ec_slots* slots, const struct packet* p) {
  __u32 index = best_slot(slots, ec_hash_ip(0, &p->src), 1ULL << 32);
  return index < EC_MAX_SLOTS ? slots->slot[BOUNDED(index, EC_MAX_SLOTS)].id : 0;
}

static __always_inline struct ec_exhausted_key exhausted_key_of(const struct ec_flow_key* key, __u32 vni) {
  struct ec_exhausted_key remote = {.remote = key->dst, .vni = vni, .port = key->dport, .proto = key->proto};
  return remote;
}

/* Whether a moment ago no port was left towards the remote endpoint. */
__noinline int was_exhausted(const struct ec_flow_key* key, __u32 vni) {
  if (!key) return 0;
  struct ec_exhausted_key remote = exhausted_key_of(key, vni);
  const __u64* found_out = bpf_map_lookup_elem(&exhausted, &remote);
  return found_out && bpf_ktime_get_ns() - *found_out < EC_EXHAUSTED_NS;
}

__noinline int remember_exhausted(const struct ec_flow_key* key, __u32 vni) {
  if (!key) return 0;
  struct ec_exhausted_key remote = exhausted_key_of(key, vni);
  __u64 now = bpf_ktime_get_ns();
  return bpf_map_update_elem(&exhausted, &remote, &now, BPF_ANY);
}

/* The id of the egress IP by which nft translates the packet; 0: no port is left for its flow. In the gateway's
 * namespace: the flows are those of its conntrack. */
static __always_inline __u32 choose_egress_ip(struct __sk_buff* skb, const struct ec_class* c, const struct packet* p) {
  const struct ec_slots* slots = slots_of(c, p->ipv4);
  if (p->later_fragment) return preferred_slot(slots, p);
  struct ec_flow_key key = {};
  flow_key_of(p, &key);
  int tracked = end_flow_of_others(skb, &key, c);
  bool opens = p->proto == IPPROTO_UDP || (p->proto == IPPROTO_TCP && opens_flow(p));
  if (tracked != UNTRACKED || !opens) return preferred_slot(slots, p);
  if (was_exhausted(&key, c->vni)) return 0;
  __u32 id = slot_for_flow(skb, slots, &key, false);
  if (!id) id = slot_for_flow(skb, slots, &key, true);
  if (!id) remember_exhausted(&key, c->vni);
  return id;
}
