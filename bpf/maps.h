/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The maps. User space pins each by its name under maps/; programs never create one. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "egressclass.h"

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct ec_node);
} node SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_ATTACHMENTS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u32);
  __type(value, struct ec_attachment);
} attachments SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_ENDPOINTS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ec_ip);
  __type(value, struct ec_endpoint);
} endpoints SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_CLASSES);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u32);
  __type(value, struct ec_class);
} classes SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_CLASSES);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u32);   /* VNI */
  __type(value, __u32); /* class id */
} vnis SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_EGRESS_IPS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ec_ip);
  __type(value, struct ec_egress_ip);
} egress_ips SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, EC_MAX_GATEWAYS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ec_ip);
  __type(value, struct ec_gateway);
} gateways SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(max_entries, EC_MAX_RULES);
  __uint(map_flags, BPF_F_NO_PREALLOC); /* LPM tries know no other way */
  __type(key, struct ec_rule_key);
  __type(value, struct ec_rule);
} rules SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(max_entries, EC_MAX_PORTS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ec_port_key);
  __type(value, __u32); /* 1: listed */
} ports SEC(".maps");

/* LRU: a pod that fell out is learned again with its next packet. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, EC_MAX_WORKER_PODS);
  __type(key, struct ec_ip);
  __type(value, struct ec_worker);
} workers SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, EC_MAX_FRAGMENTS);
  __type(key, struct ec_fragment_key);
  __type(value, struct ec_fragment);
} fragments SEC(".maps");

/* LRU: a flow that fell out is asked of conntrack again, and chooses its gateway again. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, EC_MAX_FLOWS);
  __type(key, struct ec_flow_key);
  __type(value, struct ec_flow);
} flows SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, EC_MAX_EXHAUSTED);
  __type(key, struct ec_exhausted_key);
  __type(value, __u64);
} exhausted SEC(".maps");

/* No preallocation: an entry exists for each pair that ever occurred, and few do. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
  __uint(max_entries, EC_MAX_COUNTERS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ec_counter_key);
  __type(value, struct ec_counter);
} counters SEC(".maps");
