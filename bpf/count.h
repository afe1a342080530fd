/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a program ends: counted. "Next" (TC_ACT_UNSPEC) is what lets programs attached behind ours still run. */
#pragma once

#include <linux/pkt_cls.h>

#include "maps.h"

__noinline int count(struct __sk_buff* skb, __u32 class_id, __u32 event) {
  struct ec_counter_key key = {.class_id = class_id, .event = event};
  struct ec_counter* counter = bpf_map_lookup_elem(&counters, &key);
  if (!counter) {
    struct ec_counter zero = {};
    bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
    counter = bpf_map_lookup_elem(&counters, &key);
    if (!counter) return 0;
  }
  counter->packets++; /* per CPU, and softirqs do not nest */
  counter->bytes += skb->len;
  return 0;
}

static __always_inline int drop(struct __sk_buff* skb, __u32 class_id, enum ec_event reason) {
  count(skb, class_id, reason);
  return TC_ACT_SHOT;
}

static __always_inline int pass(struct __sk_buff* skb, __u32 class_id, enum ec_event event) {
  count(skb, class_id, event);
  return TC_ACT_UNSPEC;
}
