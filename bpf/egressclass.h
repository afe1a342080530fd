/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the BPF programs and user space share: the layout of every map, and the names of what they count.
 * Plain C with fixed widths, included by bpf/ and by plugin/ (C++).
 *
 * Change a layout, and EC_LAYOUT changes too: user space refuses pinned maps of another layout.
 */
#pragma once

#include <linux/types.h>

#include "events.h"

#ifdef __cplusplus
#define EC_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), "layout of " #type)
#else
#define EC_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), "layout of " #type)
#endif

#define EC_LAYOUT 4

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
#define EC_MAX_EXHAUSTED 4096
#define EC_MAX_EGRESS_IPS 65536

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
  __u32 gateway_ifindex; /* ec0, which leads into the gateway's namespace; 0: this node is no gateway */
  __u32 reply_mark;      /* worker: reply of an inbound connection, to be verified by conntrack */
  __u32 probe_mark;      /* probe and answer between worker and gateway */
  __u32 pending_mark;    /* one bit: nft has yet to see the packet (core/mark.h) */
  __u32 bypass_mark;     /* for the cluster: nft drops it if a DNAT leads it out */
  __u32 passed[2];       /* in skb->cb: classify has passed the packet on. A random number, which no pod can know */
};
EC_SIZE(ec_node, 80);

/* attachments[ifindex of the host veth]: the pod behind it. Here and in `endpoints`, keys and the place of the cookie
 * are the same in every layout: DEL works with that of another version. */
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

/*
 * Marks of packets in the gateway's namespace, where all 32 bits are ours: a class's id and EC_MARK_NEW, until
 * gateway_in has chosen an egress IP; then the id of that, by which nft translates. Of flows, as ct marks: that of
 * their first packet. What comes from outside has none.
 */
#define EC_MARK_TUNNELED 0x80000000U /* came through the tunnel: replies go back by it */
#define EC_MARK_NEW 0x40000000U
#define EC_MARK_ID 0x3fffffffU

/* egress_ips[address]: that this node holds. What comes for one goes into the gateway's namespace, and nothing leaves
 * that for the outside with another source. */
struct ec_egress_ip {
  __u32 ifindex;     /* where it is answered for */
  __u32 own_network; /* it is an address of that interface's network: it leaves by there, if there is a route */
};
EC_SIZE(ec_egress_ip, 8);

enum ec_path {
  EC_PATH_LOCAL = 1,   /* this node is the gateway: into its namespace */
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
  __u32 id;   /* of the packet's mark, in the gateway's namespace: nft translates by it */
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

/* Each ruleset has a rule for 0.0.0.0/0 and for ::/0. So what finds none has met a ruleset that is not there, and is
 * dropped: it must not pass for a destination that nobody listed. */
enum ec_verdict {
  EC_BYPASS = 1,
  EC_STEER = 2,
  EC_REPLY = 3,     /* answers an inbound flow; not in `rules` */
  EC_OTHERWISE = 4, /* listed by nobody */
};

struct ec_rule {
  __u32 verdict;  /* enum ec_verdict */
  __u32 port_set; /* EC_STEER: what of it; 0: everything */
};
EC_SIZE(ec_rule, 8);

/* ports: longest prefix within one port set and protocol; the value says whether it is listed. A range is several
 * prefixes. A protocol without ports, and all ports of one with, is the prefix of no port bits. The prefix of the port
 * set alone is not listed, and always there: what finds no entry has met a port set that is missing. */
struct ec_port_key {
  __u32 prefixlen; /* EC_PORT_BITS, plus 0..16 of the port */
  __u32 port_set;
  __u16 proto;
  __be16 port;
};
EC_SIZE(ec_port_key, 12);

#define EC_PORT_SET_BITS 32U
#define EC_PORT_BITS 48U

/* exhausted: a remote endpoint towards which no port of a class's egress IPs was free, and when that was found out
 * (CLOCK_MONOTONIC). The search is the dearest thing that a packet can ask for: it is not repeated for a moment. */
struct ec_exhausted_key {
  struct ec_ip remote;
  __u32 vni;
  __be16 port;
  __u16 proto;
};
EC_SIZE(ec_exhausted_key, 24);

#define EC_EXHAUSTED_NS 100000000ULL

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
