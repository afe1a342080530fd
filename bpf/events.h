/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Everything that is counted: number, id, name for operators. Below EC_FIRST_DROP: what happened to a packet that went
 * on; from there: why it did not. The README says what to do about each.
 *
 * The numbers are keys of a pinned map that outlives an upgrade: they never change and are never used again. 117 was
 * worker_unknown.
 */
#pragma once

#define EC_FIRST_DROP 100

#define EC_EVENTS(X)                                                                                \
  X(1, STEERED_LOCAL, "steered_local")     /* pod -> SNAT on this node */                           \
  X(2, STEERED_TUNNEL, "steered_tunnel")   /* pod -> tunnel */                                      \
  X(3, STEERED_NEXTHOP, "steered_nexthop") /* pod -> next hop */                                    \
  X(4, RETURNED, "returned")               /* tunnel or next hop -> pod */                          \
  X(5, BYPASSED, "bypassed")               /* pod -> CNI, untouched */                              \
  X(6, REPLIED, "replied")                 /* pod's reply to an inbound flow */                     \
  X(7, GATEWAY_OUT, "gateway_out")         /* tunnel -> SNAT on this node */                        \
  X(8, GATEWAY_BACK, "gateway_back")       /* reply -> tunnel */                                    \
  X(9, FRAGMENTED, "fragmented")           /* pod -> tunnel, in more than one outer packet */       \
  X(10, TOO_BIG, "too_big")                /* not sent; the pod was told the MTU */                 \
  X(11, PROBE_SENT, "probe_sent")                                                                   \
  X(12, PROBE_ANSWERED, "probe_answered")                                                           \
  X(100, DROP_NO_ATTACHMENT, "no_attachment") /* classifier without a pod's record */               \
  X(101, DROP_DATAPATH_DOWN, "datapath_down") /* `egressctl down` while pods run */                 \
  X(102, DROP_NOT_IP, "not_ip")               /* VLAN tags, other ethertypes, runts */              \
  X(103, DROP_SPOOFED, "spoofed")             /* source is not the pod's */                         \
  X(104, DROP_CLASS_REMOVED, "class_removed") /* the pod's class is configured no more */           \
  X(105, DROP_OTHERWISE, "otherwise")         /* "otherwise": "drop" */                             \
  X(106, DROP_TOO_LONG, "too_long")           /* for the link to a next hop, may not be answered */ \
  X(107, DROP_FRAGMENT, "fragment")           /* ahead of the first one, which has the ports */     \
  X(108, DROP_FAMILY, "family")               /* class has no egress IP of the family */            \
  X(109, DROP_GATEWAY_UNREACHABLE, "gateway_unreachable")                                           \
  X(110, DROP_TUNNEL_FAILED, "tunnel_failed")     /* the kernel refused the tunnel key */           \
  X(111, DROP_UNKNOWN_SENDER, "unknown_sender")   /* tunnel packet from no node of ours */          \
  X(112, DROP_UNKNOWN_CLASS, "unknown_class")     /* tunnel packet of no class of ours */           \
  X(113, DROP_WRONG_GATEWAY, "wrong_gateway")     /* reply from another than the gateway */         \
  X(114, DROP_NOT_GATEWAY, "not_gateway")         /* this node is no gateway of the class */        \
  X(115, DROP_BAD_DESTINATION, "bad_destination") /* tunnel packet for the cluster itself */        \
  X(116, DROP_WORKER_TABLE, "worker_table")       /* the worker could not be learned */             \
  X(118, DROP_UNVERIFIED, "unverified")           /* marked, but nft has not seen it */             \
  X(119, DROP_STRAY, "stray")                     /* on egress0, but not by our doing */            \
  X(120, DROP_RULES_MISSING, "rules_missing")     /* the destination set is not in the maps */      \
  X(121, DROP_MAPPED_ADDRESS, "mapped_address")   /* IPv6 to or from ::ffff:a.b.c.d */              \
  X(122, DROP_NAT_EXHAUSTED, "nat_exhausted")     /* no port of the egress IPs is left */           \
  X(123, DROP_GATEWAY_GONE, "gateway_gone")       /* the way into the gateway's namespace is cut */ \
  X(124, DROP_NOT_TRANSLATED, "not_translated")   /* left that namespace without an egress IP */    \
  X(125, DROP_NO_ROUTE, "no_route")               /* from the egress IP to the destination */

enum ec_event {
#define X(number, id, name) EC_##id = (number),
  EC_EVENTS(X)
#undef X
};
