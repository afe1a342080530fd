/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the BPF programs and user space share: the layout of every map, and the names of what they count.
 * Plain C with fixed widths, included by bpf/ and by plugin/ (C++).
 *
 * Change a layout, and EC_LAYOUT changes too: user space refuses pinned maps of another layout.
 */
#pragma once

#include <linux/types.h>

#ifdef __cplusplus
#define EC_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), "layout of " #type)
#else
#define EC_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), "layout of " #type)
#endif

#define EC_LAYOUT 2

#define EC_MAX_ATTACHMENTS 4096
#define EC_MAX_ENDPOINTS 16384
#define EC_MAX_CLASSES 4096
#define EC_MAX_HOPS 16 /* gateways of a class */
#define EC_MAX_SLOTS 8 /* egress IPs of a class on one gateway, of each family */
#define EC_MAX_RULES 262144
#define EC_MAX_PORTS 65536
#define EC_MAX_GATEWAYS 4096
#define EC_MAX_WORKER_PODS 65536
#define EC_MAX_FRAGMENTS 8192
#define EC_MAX_FLOWS 65536
#define EC_MAX_COUNTERS 65536

/* An address of either family: IPv4 as ::ffff:a.b.c.d. Network byte order. */
struct ec_ip {
  __be32 w[4];
};
EC_SIZE(ec_ip, 16);

/* node[0]: what this node is, and whether the datapath may let classed traffic through. */
struct ec_node {
  __u32 layout;           /* EC_LAYOUT */
  __u32 applied;          /* 0: the configuration is down, drop what would be steered */
  __u32 tunnel_ifindex;   /* egress0 */
  __u32 tunnel_mtu;       /* of egress0: what fits into the tunnel */
  struct ec_ip underlay4; /* this node's addresses among the configuration's `nodes`; zero: none */
  struct ec_ip underlay6;
  __u32 mark_mask;
  __u32 return_mark;  /* gateway: reply on its way back into the tunnel */
  __u32 reply_mark;   /* worker: reply of an inbound connection, to be verified by conntrack */
  __u32 probe_mark;   /* probe and answer between worker and gateway */
  __u32 pending_mark; /* one bit: nft has yet to see the packet (core/mark.h) */
  __u32 bypass_mark;  /* for the cluster: nft drops it if a DNAT leads it out */
};
EC_SIZE(ec_node, 72);

/* attachments[ifindex of the host veth]: the pod behind it. */
struct ec_attachment {
  __u64 cookie; /* hash of (network, container id, ifname): ifindexes are reused, this is not */
  __u32 class_id;
  __u8 pod_mac[6];
  __u8 host_mac[6];
};
EC_SIZE(ec_attachment, 24);

/* endpoints[address of a classed pod on this node]: where it lives. */
struct ec_endpoint {
  __u64 cookie;
  __u32 ifindex;
  __u32 class_id;
  __u8 pod_mac[6];
  __u8 host_mac[6];
  __u8 pad[4];
};
EC_SIZE(ec_endpoint, 32);

enum ec_path {
  EC_PATH_LOCAL = 1,   /* this node is the gateway: the kernel translates what carries the mark */
  EC_PATH_TUNNEL = 2,  /* VXLAN to the gateway */
  EC_PATH_NEXTHOP = 3, /* to the neighbour with that address, as it is */
};

#define EC_IPV4 1U /* bits of a set of families */
#define EC_IPV6 2U

/* One gateway of a class, as this node reaches it. */
struct ec_hop {
  struct ec_ip address;
  __u32 path;     /* enum ec_path */
  __u32 ifindex;  /* EC_PATH_NEXTHOP: the interface towards it */
  __u32 families; /* that it can send on: it has egress IPs of them, or is a next hop of them */
  __u32 seed;     /* for ec_weight(): made of the address */
};
EC_SIZE(ec_hop, 32);

/* One egress IP of a class on this node, its gateway. */
struct ec_slot {
  struct ec_ip ip;
  __u32 mark; /* nft translates what carries it to `ip` */
  __u32 seed; /* for ec_weight(): made of the address */
};
EC_SIZE(ec_slot, 24);

struct ec_slots {
  __u32 count; /* 0: this node is no gateway of the class for that family */
  __u32 pad;
  struct ec_slot slot[EC_MAX_SLOTS];
};
EC_SIZE(ec_slots, 8 + EC_MAX_SLOTS * 24);

#define EC_SPREAD_FLOWS 1U        /* each flow chooses its gateway, not each pod */
#define EC_OTHERWISE_DROP 2U      /* what matches no rule is dropped, not bypassed */
#define EC_OTHER_FAMILY_BYPASS 4U /* a family that no gateway can send is bypassed, not dropped */
#define EC_KEEP_FLOWS 8U          /* open flows outlive a change of the class */

/* classes[class id]. The id is this node's own; the VNI is the same on every node. */
struct ec_class {
  __u32 vni;
  __u32 mark;       /* the id, spread over the bits of the mark mask */
  __u32 ruleset;    /* of its destinations, in `rules` */
  __u32 flags;      /* EC_SPREAD_FLOWS, ... */
  __u32 generation; /* another one with each change of the class */
  __u32 families;   /* that any of the hops can send */
  __u32 hop_count;
  __u32 pad;
  struct ec_hop hops[EC_MAX_HOPS];
  struct ec_slots slots4, slots6;
};
EC_SIZE(ec_class, 32 + EC_MAX_HOPS * 32 + 2 * sizeof(struct ec_slots));

/*
 * Rendezvous hashing: of several candidates, the one with the highest weight for `key` is chosen. When one comes or
 * goes, only what it wins or had moves.
 */
static inline __u32 ec_mix(__u32 hash, __u32 word) {
  hash ^= word * 0xcc9e2d51U;
  hash = (hash << 13 | hash >> 19) * 5 + 0xe6546b64U;
  return hash;
}

static inline __u32 ec_finish(__u32 hash) {
  hash = (hash ^ hash >> 16) * 0x85ebca6bU;
  hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
  return hash ^ hash >> 16;
}

static inline __u32 ec_hash_ip(__u32 hash, const struct ec_ip* ip) {
  return ec_mix(ec_mix(ec_mix(ec_mix(hash, ip->w[0]), ip->w[1]), ip->w[2]), ip->w[3]);
}

static inline __u32 ec_weight(__u32 key, __u32 seed) { return ec_finish(ec_mix(key, seed)); }

/* VNIs that are no class. */
#define EC_VNI_PROBE 0x000000
#define EC_VNI_ANSWER 0xffffff

/* gateways[address]: whether it answers. Kept by the programs alone. For a next hop, a probe is a look into the
 * kernel's neighbour table, and an answer that it is there. */
struct ec_gateway {
  __u64 last_seen_ns;  /* CLOCK_MONOTONIC of the last packet from it */
  __u64 last_probe_ns; /* of the last probe sent to it */
  __u32 unanswered;    /* probes sent since last_seen_ns */
  __u32 pad;
};
EC_SIZE(ec_gateway, 24);

#define EC_PROBE_INTERVAL_NS 250000000ULL
#define EC_PROBES_UNANSWERED 4 /* so many in a row, and the gateway counts as unreachable */

/* rules: longest prefix within one ruleset and family. */
struct ec_rule_key {
  __u32 prefixlen; /* 32 bits of the tree, then 0..128 of the address */
  __u32 tree;      /* EC_TREE() */
  struct ec_ip ip;
};
EC_SIZE(ec_rule_key, 24);

/* The families are apart: ::/0 does not cover IPv4, as it would among 128-bit addresses. */
#define EC_TREE(ruleset, is_ipv4) ((ruleset) << 1 | (is_ipv4))

#define EC_RULESET_NEVER 0   /* cluster, nodes, local addresses: never steered */
#define EC_RULESET_SENDERS 1 /* accepted senders of tunnel packets */
#define EC_RULESET_FIRST 16  /* classes' rulesets start here */

enum ec_verdict {
  EC_BYPASS = 1,
  EC_STEER = 2,
  EC_REPLY = 3, /* answers an inbound flow; not in `rules` */
};

struct ec_rule {
  __u32 verdict;  /* enum ec_verdict */
  __u32 port_set; /* EC_STEER: what of it; 0: everything */
};
EC_SIZE(ec_rule, 8);

/* ports: longest prefix within one port set and protocol; that an entry is there is all it says. A range is several
 * prefixes. A protocol without ports, and all ports of one with, is the prefix of no port bits. */
struct ec_port_key {
  __u32 prefixlen; /* EC_PORT_BITS, plus 0..16 of the port */
  __u32 port_set;
  __u16 proto;
  __be16 port;
};
EC_SIZE(ec_port_key, 12);

#define EC_PORT_BITS 48U

/* workers[pod address]: on a gateway, learned from the tunnel: where replies to that pod go. */
struct ec_worker {
  struct ec_ip node;
  struct ec_ip gateway; /* the address of this node to which the worker sends */
  __u32 class_id;
  __u32 pad;
};
EC_SIZE(ec_worker, 40);

/* fragments: a later fragment has no ports; it goes the way of its first one. */
struct ec_fragment_key {
  struct ec_ip src, dst;
  __u32 id;
  __u32 proto; /* IPv6: 0; a later fragment does not have that of the transport */
};
EC_SIZE(ec_fragment_key, 40);

struct ec_fragment {
  struct ec_ip gateway; /* EC_STEER */
  __u32 verdict;        /* enum ec_verdict; 0: drop */
  __u32 reason;         /* of the drop: enum ec_event */
};
EC_SIZE(ec_fragment, 24);

/* flows: what pods here opened, by what the pod sends: ports of TCP, UDP and SCTP; the id of an ICMP echo as `sport`.
 * What is in it stays with its gateway, whatever conntrack comes to believe of stray packets from outside. */
struct ec_flow_key {
  struct ec_ip src, dst;
  __be16 sport, dport;
  __u32 proto;
};
EC_SIZE(ec_flow_key, 40);

struct ec_flow {
  __u64 last_seen_ns; /* CLOCK_MONOTONIC, of the last packet of the pod, to a second */
  struct ec_ip gateway;
  __u32 class_id;
  __u32 generation; /* of the class, when this was decided */
};
EC_SIZE(ec_flow, 32);

#define EC_FLOW_REFRESH_NS 1000000000LL
#define EC_IDLE_FLOW_NS 180000000000LL /* after so long a silence, a packet of no TCP flow may be an answer again */

/*
 * Everything that is counted, with its name for operators. Up to the drops: what happened to a packet that went
 * on. From EC_FIRST_DROP: why it did not. The README says what to do about each.
 */
#define EC_EVENTS(X)                                                                               \
  X(STEERED_LOCAL, "steered_local")     /* pod -> SNAT on this node */                             \
  X(STEERED_TUNNEL, "steered_tunnel")   /* pod -> tunnel */                                        \
  X(STEERED_NEXTHOP, "steered_nexthop") /* pod -> next hop */                                      \
  X(RETURNED, "returned")               /* tunnel or next hop -> pod */                            \
  X(BYPASSED, "bypassed")               /* pod -> CNI, untouched */                                \
  X(REPLIED, "replied")                 /* pod's reply to an inbound flow */                       \
  X(GATEWAY_OUT, "gateway_out")         /* tunnel -> SNAT on this node */                          \
  X(GATEWAY_BACK, "gateway_back")       /* reply -> tunnel */                                      \
  X(FRAGMENTED, "fragmented")           /* pod -> tunnel, in more than one outer packet */         \
  X(TOO_BIG, "too_big")                 /* not sent; the pod was told the MTU */                   \
  X(PROBE_SENT, "probe_sent")                                                                      \
  X(PROBE_ANSWERED, "probe_answered")                                                              \
  X(DROP_NO_ATTACHMENT, "no_attachment") /* classifier without a pod's record */                   \
  X(DROP_DATAPATH_DOWN, "datapath_down") /* `egressctl down` while pods run */                     \
  X(DROP_NOT_IP, "not_ip")               /* VLAN tags, other ethertypes, runts */                  \
  X(DROP_SPOOFED, "spoofed")             /* source is not the pod's */                             \
  X(DROP_CLASS_REMOVED, "class_removed") /* the pod's class is configured no more */               \
  X(DROP_OTHERWISE, "otherwise")         /* "otherwise": "drop" */                                 \
  X(DROP_TOO_LONG, "too_long")           /* for the link to a next hop, and may not be answered */ \
  X(DROP_FRAGMENT, "fragment")           /* ahead of the first one, which has the ports */         \
  X(DROP_FAMILY, "family")               /* class has no egress IP of the family */                \
  X(DROP_GATEWAY_UNREACHABLE, "gateway_unreachable")                                               \
  X(DROP_TUNNEL_FAILED, "tunnel_failed")     /* the kernel refused the tunnel key */               \
  X(DROP_UNKNOWN_SENDER, "unknown_sender")   /* tunnel packet from no node of ours */              \
  X(DROP_UNKNOWN_CLASS, "unknown_class")     /* tunnel packet of no class of ours */               \
  X(DROP_WRONG_GATEWAY, "wrong_gateway")     /* reply from another than the gateway */             \
  X(DROP_NOT_GATEWAY, "not_gateway")         /* this node is no gateway of the class */            \
  X(DROP_BAD_DESTINATION, "bad_destination") /* tunnel packet for the cluster itself */            \
  X(DROP_WORKER_TABLE, "worker_table")       /* the worker could not be learned */                 \
  X(DROP_WORKER_UNKNOWN, "worker_unknown")   /* reply for a pod that was never seen */             \
  X(DROP_UNVERIFIED, "unverified")           /* marked, but nft has not seen it */                 \
  X(DROP_STRAY, "stray")                     /* on egress0, but not by our doing */

enum ec_event {
#define X(id, name) EC_##id,
  EC_EVENTS(X)
#undef X
      EC_EVENT_COUNT,
  EC_FIRST_DROP = EC_DROP_NO_ATTACHMENT,
};

/* counters[class id (0: none known), event] */
struct ec_counter_key {
  __u32 class_id;
  __u32 event; /* enum ec_event */
};
EC_SIZE(ec_counter_key, 8);

struct ec_counter {
  __u64 packets;
  __u64 bytes;
};
EC_SIZE(ec_counter, 16);
