/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which of a class's egress IPs on this gateway a packet gets. nft translates by the mark; conntrack makes it last. */
#pragma once

#include "conntrack.h"
#include "flows.h"

/* A source port that is free is found by trying ports at random, as the kernel does. When 13 of 16 are taken, some 80 %
 * are: then the next egress IP takes over, long before the kernel has to give up. */
#define PORT_SAMPLES 16
#define PORTS_CROWDED 13
#define FIRST_PORT 1024
#define PORT_COUNT 64512

/* Of the egress IP and remote endpoint of a reply; its dport is tried. */
__noinline int is_crowded(struct __sk_buff* skb, struct ec_flow_key* reply) {
  if (!reply) return 0;
  __u32 taken = 0;
  for (int i = 0; i < PORT_SAMPLES; i++) {
    reply->dport = bpf_htons(FIRST_PORT + bpf_get_prandom_u32() % PORT_COUNT);
    if (find_tracked(skb, reply) != UNTRACKED) taken++;
  }
  return taken >= PORTS_CROWDED;
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

static __always_inline bool may_open_flow(struct __sk_buff* skb, const struct packet* p) {
  if (p->later_fragment || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)) return false;
  if (p->proto == IPPROTO_TCP) return opens_flow(p);
  struct ec_flow_key key = {};
  flow_key_of(p, &key);
  return find_tracked(skb, &key) == UNTRACKED;
}

/* A pod keeps to one egress IP, unless that has few ports left towards the remote endpoint. */
static __noinline __u32 choose_slot(struct __sk_buff* skb, const struct ec_slots* slots, const struct packet* p) {
  if (slots->count <= 1) return slots->slot[0].mark;
  __u32 key = ec_hash_ip(0, &p->src);
  __u64 bound = 1ULL << 32;
  __u32 due = 0;
  for (int i = 0; i < EC_MAX_SLOTS; i++) {
    __u32 index = best_slot(slots, key, bound);
    if (index >= EC_MAX_SLOTS) break;
    const struct ec_slot* slot = &slots->slot[BOUNDED(index, EC_MAX_SLOTS)];
    if (i == 0) due = slot->mark;
    if (i == 0 && !may_open_flow(skb, p)) break;
    struct ec_flow_key reply = {.src = p->dst, .dst = slot->ip, .sport = p->dport, .proto = p->proto};
    if (!is_crowded(skb, &reply)) return slot->mark;
    bound = ec_weight(key, slot->seed);
  }
  return due; /* opens no flow; or none has many ports left, and the kernel looks for the last ones */
}

/* The mark with which the packet goes to nft, to be translated on this node. */
static __always_inline __u32 mark_to_translate(struct __sk_buff* skb, const struct ec_node* n, const struct ec_class* c,
                                               const struct packet* p) {
  if (!p->later_fragment) {
    struct ec_flow_key key = {};
    flow_key_of(p, &key);
    end_flow_of_others(skb, &key, c, n->return_mark /* all bits but the pending one */);
  }
  return choose_slot(skb, slots_of(c, p->ipv4), p) | n->pending_mark;
}
