/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a program ends: counted. "Next" (TC_ACT_UNSPEC) is what lets programs attached behind ours still run. */
#pragma once

#include <linux/pkt_cls.h>

#include "maps.h"
#include "packet.h"

/* The length of all headers of a packet that the device below is to cut into segments; each of them has its own. 0: not
 * known. */
static __always_inline __u32 headers_length(struct __sk_buff* skb) {
  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP) return 0;
  if (p.proto != IPPROTO_TCP) return p.l4 + 8; /* UDP */
  __u8 words = 0;
  if (bpf_skb_load_bytes(skb, p.l4 + 12, &words, 1)) return 0;
  return p.l4 + (words >> 4) * 4;
}

/* Of a packet that is to be cut into segments: how many more there will be than one, in the upper half, and what each
 * of them has of headers, in the lower. */
__noinline __u32 further_segments(struct __sk_buff* skb) {
  __u32 size = skb->gso_size;
  __u32 headers = headers_length(skb);
  if (!size || !headers || headers >= skb->len) return 0;
  return (skb->len - headers - 1) / size << 16 | headers;
}

__noinline int add_to_counter(__u32 class_id, __u32 event, __u64 packets, __u64 bytes) {
  struct ec_counter_key key = {.class_id = class_id, .event = event};
  struct ec_counter* counter = bpf_map_lookup_elem(&counters, &key);
  if (!counter) {
    struct ec_counter zero = {};
    bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
    counter = bpf_map_lookup_elem(&counters, &key);
    if (!counter) return 0;
  }
  counter->packets += packets; /* per CPU, and softirqs do not nest */
  counter->bytes += bytes;
  return 0;
}

/* Packets and bytes as they are on the wire in the end. */
static __always_inline void count(struct __sk_buff* skb, __u32 class_id, enum ec_event event) {
  __u32 further = skb->gso_size ? further_segments(skb) : 0;
  add_to_counter(class_id, event, 1 + (further >> 16), skb->len + (further >> 16) * (further & 0xffff));
}

static __always_inline int drop(struct __sk_buff* skb, __u32 class_id, enum ec_event reason) {
  count(skb, class_id, reason);
  return TC_ACT_SHOT;
}

static __always_inline int pass(struct __sk_buff* skb, __u32 class_id, enum ec_event event) {
  count(skb, class_id, event);
  return TC_ACT_UNSPEC;
}
