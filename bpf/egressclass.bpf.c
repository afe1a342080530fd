// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The datapath.
 *
 *   classify    host veth of a classed pod, ingress: what the pod sends
 *   classify_again   behind it, held by the device and by no pin: should somebody remove the pins, which takes
 *               classify off, it goes on in its place, with the same maps
 *   tunnel_in   egress0, ingress: what other nodes send us
 *   tunnel_out  egress0, egress: what we send them
 *   nexthop_in  interface towards a next hop, ingress: what comes back by there
 *   uplink_in   interfaces of a gateway, ingress: what comes for an egress IP
 *   gateway_in  ec1, ingress, in the gateway's namespace: what goes in there
 *   gateway_out ec0, ingress: what comes out of it, translated
 *
 * Every packet that is not sent right is dropped with a reason. Programs return TC_ACT_UNSPEC ("next") for
 * what they let pass, so that programs attached behind them still run.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

#include "conntrack.h"
#include "count.h"
#include "flows.h"
#include "gateway.h"
#include "gateways.h"
#include "maps.h"
#include "neighbours.h"
#include "nexthop.h"
#include "packet.h"
#include "slots.h"
#include "too_big.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "GPL"; /* conntrack.h calls GPL-only functions */

#define PROBE_BYTES 60

static __always_inline const struct ec_node* this_node(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&node, &zero);
}

static __always_inline bool sent_by_pod(const struct packet* p, const struct ec_attachment* pod, __u32 ifindex) {
  if (!same_mac(p->src_mac, pod->pod_mac) || is_v4(&p->src) != p->ipv4) return false;
  const struct ec_endpoint* endpoint = bpf_map_lookup_elem(&endpoints, &p->src);
  return endpoint && endpoint->ifindex == ifindex;
}

/* For the host's own IP stack, where nft waits for what is marked: were the veth a port of a bridge to the node's LAN,
 * the packet might else be bridged past it. */
static __always_inline long to_host(struct __sk_buff* skb, const struct ec_attachment* pod) {
  bpf_skb_change_type(skb, PACKET_HOST);
  return bpf_skb_store_bytes(skb, 0, pod->host_mac, ETH_ALEN, 0);
}

/* Whether the packet, or any segment of it, is longer than what the device takes; and what that is. */
static __always_inline bool exceeds_mtu(struct __sk_buff* skb, __u32 ifindex, __u32* mtu) {
  *mtu = 0;
  return bpf_check_mtu(skb, ifindex, mtu, 0, BPF_MTU_CHK_SEGS) > 0;
}

static __always_inline int tell_too_big(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                        const struct packet* p, __u32 mtu) {
  count(skb, id, EC_TOO_BIG);
  if (answer_too_big(skb, p, p->ipv4 ? &n->underlay4 : &n->underlay6, mtu)) return TC_ACT_SHOT;
  return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int send_to_host(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                        const struct ec_attachment* pod, __u32 mark, enum ec_event event) {
  set_mark(skb, n, mark);
  if (to_host(skb, pod)) return drop(skb, id, EC_DROP_NOT_IP);
  return pass(skb, id, event);
}

static __always_inline int send_by_tunnel(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                          const struct ec_class* c, const struct ec_hop* hop, const struct packet* p) {
  __u32 mtu;
  if (skb->len > n->tunnel_mtu + ETH_HLEN && exceeds_mtu(skb, n->tunnel_ifindex, &mtu)) {
    /* The kernel makes no fragments of what a tunnel puts into IPv6. The pod makes them itself once it knows. */
    if (p->dont_fragment || !is_v4(&hop->address)) return tell_too_big(skb, n, id, p, mtu);
    count(skb, id, EC_FRAGMENTED);
  }
  struct ec_ip gateway = hop->address;
  if (set_tunnel(skb, c->vni, underlay_towards(n, &gateway), &gateway)) return drop(skb, id, EC_DROP_TUNNEL_FAILED);
  count(skb, id, EC_STEERED_TUNNEL);
  return bpf_redirect(n->tunnel_ifindex, 0);
}

static __always_inline int send_to_nexthop(struct __sk_buff* skb, const struct ec_node* n, __u32 id,
                                           const struct ec_hop* hop, const struct packet* p) {
  __u32 mtu;
  if (exceeds_mtu(skb, hop->ifindex, &mtu))
    return p->dont_fragment ? tell_too_big(skb, n, id, p, mtu) : drop(skb, id, EC_DROP_TOO_LONG);
  if (p->ttl <= 1) return pass(skb, id, EC_BYPASSED); /* the kernel tells the pod, and sends it nowhere */
  if (decrement_ttl(skb, p)) return drop(skb, id, EC_DROP_NOT_IP);
  count(skb, id, EC_STEERED_NEXTHOP);
  return redirect_to_neighbour(hop);
}

static __always_inline int classify_packet(struct __sk_buff* skb, const struct ec_node* n) {
  __u32 ifindex = skb->ifindex;
  const struct ec_attachment* pod = bpf_map_lookup_elem(&attachments, &ifindex);
  if (!pod) return drop(skb, 0, EC_DROP_NO_ATTACHMENT);
  __u32 id = pod->class_id;

  struct packet p = {};
  switch (parse_packet(skb, &p)) {
    case PARSED_ARP:
      return TC_ACT_UNSPEC;
    case NOT_PARSED:
      return drop(skb, id, EC_DROP_NOT_IP);
    case PARSED_IP:
      break;
  }
  if (is_mapped(&p.dst, p.ipv4)) return drop(skb, id, EC_DROP_MAPPED_ADDRESS);
  if (stays_on_link(&p) || is_neighbour_discovery(skb, &p)) return pass(skb, id, EC_BYPASSED);
  if (!sent_by_pod(&p, pod, ifindex)) return drop(skb, id, EC_DROP_SPOOFED);
  const struct ec_rule* never = rule_of(EC_RULESET_NEVER, &p.dst, p.ipv4);
  if (!never) return drop(skb, id, EC_DROP_RULES_MISSING);
  if (never->verdict != EC_OTHERWISE) {
    set_mark(skb, n, n->bypass_mark);
    return pass(skb, id, EC_BYPASSED);
  }

  if (!n->applied) return drop(skb, id, EC_DROP_DATAPATH_DOWN);
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!c) return drop(skb, id, EC_DROP_CLASS_REMOVED);

  struct decision d = decide(skb, n, id, c, &p);
  if (d.verdict == EC_BYPASS) return pass(skb, id, EC_BYPASSED);
  if (d.verdict == EC_REPLY) return send_to_host(skb, n, id, pod, n->reply_mark, EC_REPLIED);
  if (d.verdict != EC_STEER || !d.hop) return drop(skb, id, d.reason);
  if (d.hop->path == EC_PATH_LOCAL) return to_gateway(skb, n, id, EC_MARK_NEW | id);
  set_mark(skb, n, c->mark);
  if (d.hop->path == EC_PATH_NEXTHOP) return send_to_nexthop(skb, n, id, d.hop, &p);
  return send_by_tunnel(skb, n, id, c, d.hop, &p);
}

SEC("tc")
int classify(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (!n) return drop(skb, 0, EC_DROP_NO_ATTACHMENT);
  int action = classify_packet(skb, n);
  skb->cb[0] = n->passed[0];
  skb->cb[1] = n->passed[1];
  return action;
}

SEC("tc")
int classify_again(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (!n) return drop(skb, 0, EC_DROP_NO_ATTACHMENT);
  if (n->passed[0] && skb->cb[0] == n->passed[0] && skb->cb[1] == n->passed[1]) return TC_ACT_UNSPEC;
  return classify_packet(skb, n);
}

/* A packet for one of our pods has come by a way of ours: straight into the pod, past the node's own filters, which
 * never saw the way out and would call it invalid. */
static __always_inline int return_to_pod(struct __sk_buff* skb, const struct ec_endpoint* pod, __u32 class_id) {
  if (bpf_skb_store_bytes(skb, 0, pod->pod_mac, ETH_ALEN, 0) ||
      bpf_skb_store_bytes(skb, ETH_ALEN, pod->host_mac, ETH_ALEN, 0))
    return drop(skb, class_id, EC_DROP_NOT_IP);
  bpf_skb_change_type(skb, PACKET_HOST);
  count(skb, class_id, EC_RETURNED);
  return bpf_redirect_peer(pod->ifindex, 0);
}

static __always_inline bool is_gateway_of(const struct ec_class* c, const struct ec_ip* sender) {
  const struct ec_hop* hop = hop_with_address(c, sender, EC_IPV4 | EC_IPV6);
  return hop && hop->path == EC_PATH_TUNNEL;
}

static __always_inline bool learn_worker(const struct ec_ip* pod, const struct tunneled* t, __u32 class_id) {
  const struct ec_worker* known = bpf_map_lookup_elem(&workers, pod);
  if (known && known->class_id == class_id && same_ip(&known->node, &t->sender) &&
      same_ip(&known->gateway, &t->receiver))
    return true;
  struct ec_worker worker = {.node = t->sender, .gateway = t->receiver, .class_id = class_id};
  return bpf_map_update_elem(&workers, pod, &worker, BPF_ANY) == 0;
}

SEC("tc")
int tunnel_in(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  struct tunneled t = {};
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  if (!read_tunnel(skb, &t)) return drop(skb, 0, EC_DROP_STRAY);
  if (!is_listed(EC_RULESET_SENDERS, &t.sender)) return drop(skb, 0, EC_DROP_UNKNOWN_SENDER);

  if (t.vni == EC_VNI_PROBE) {
    if (set_tunnel(skb, EC_VNI_ANSWER, &t.receiver, &t.sender)) return drop(skb, 0, EC_DROP_TUNNEL_FAILED);
    count(skb, 0, EC_PROBE_ANSWERED);
    set_mark(skb, n, n->probe_mark);
    return bpf_redirect(n->tunnel_ifindex, 0);
  }
  struct ec_gateway* gateway = bpf_map_lookup_elem(&gateways, &t.sender);
  if (t.vni == EC_VNI_ANSWER) {
    if (gateway) gateway_seen(gateway);
    return TC_ACT_SHOT;
  }

  const __u32* id = bpf_map_lookup_elem(&vnis, &t.vni);
  if (!id) return drop(skb, 0, EC_DROP_UNKNOWN_CLASS);
  const struct ec_class* c = bpf_map_lookup_elem(&classes, id);
  if (!c) return drop(skb, *id, EC_DROP_UNKNOWN_CLASS);
  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP) return drop(skb, *id, EC_DROP_NOT_IP);
  if (is_mapped(&p.src, p.ipv4) || is_mapped(&p.dst, p.ipv4)) return drop(skb, *id, EC_DROP_MAPPED_ADDRESS);

  const struct ec_endpoint* pod = bpf_map_lookup_elem(&endpoints, &p.dst);
  if (pod) {
    if (pod->class_id != *id || !is_gateway_of(c, &t.sender)) return drop(skb, *id, EC_DROP_WRONG_GATEWAY);
    if (gateway) gateway_seen(gateway);
    return return_to_pod(skb, pod, *id);
  }

  if (!c->slots4.count && !c->slots6.count) return drop(skb, *id, EC_DROP_NOT_GATEWAY);
  if (!slots_of(c, p.ipv4)->count) return drop(skb, *id, EC_DROP_FAMILY);
  if (stays_on_link(&p) || is_listed(EC_RULESET_NEVER, &p.dst)) return drop(skb, *id, EC_DROP_BAD_DESTINATION);
  if (!learn_worker(&p.src, &t, *id)) return drop(skb, *id, EC_DROP_WORKER_TABLE);
  return to_gateway(skb, n, *id, EC_MARK_NEW | EC_MARK_TUNNELED | *id);
}

/* Multicast: what the kernel says on any IPv6 device, about its own groups. Whatever its mark: that field is another
 * one there (sk_buff: `mark` and `reserved_tailroom` are a union). */
static __always_inline bool is_of_device_itself(struct __sk_buff* skb) {
  __u8 first_byte = 0;
  return bpf_skb_load_bytes(skb, 0, &first_byte, 1) == 0 && (first_byte & 1);
}

/* The mark must not go on to the outer packet: routing and nft would take that for a packet of the class. */
SEC("tc")
int tunnel_out(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (is_of_device_itself(skb)) return TC_ACT_SHOT;
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  __u32 mark = skb->mark & n->mark_mask;
  set_mark(skb, n, 0);

  if (mark == n->probe_mark) {
    if (skb->len > PROBE_BYTES) bpf_skb_change_tail(skb, PROBE_BYTES, 0);
    return TC_ACT_UNSPEC;
  }
  if (mark == 0) return drop(skb, 0, EC_DROP_STRAY);
  if (mark & n->pending_mark) return drop(skb, 0, EC_DROP_UNVERIFIED);
  return TC_ACT_UNSPEC; /* who has redirected it here has set the tunnel key */
}

/* Whether the packet belongs to a flow that the pod it is for has opened by a next hop. */
static __noinline bool is_of_nexthop(struct __sk_buff* skb, struct packet* p, const struct ec_endpoint* pod) {
  struct ec_fragment_key fragment = fragment_key_of(p);
  if (p->later_fragment) return bpf_map_lookup_elem(&fragments, &fragment) != 0;
  if (!read_transport(skb, p)) return false;
  struct ec_flow_key key = {};
  if (!is_icmp_error(p))
    reverse_flow_key_of(p, &key);
  else if (!read_flow_in_error(skb, p, &key, false))
    return false;
  __u32 id = pod->class_id;
  const struct ec_flow* flow = bpf_map_lookup_elem(&flows, &key);
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!flow || !c || flow->class_id != id) return false;
  struct ec_ip gateway = flow->gateway;
  const struct ec_hop* hop = hop_with_address(c, &gateway, EC_IPV4 | EC_IPV6);
  if (!hop || hop->path != EC_PATH_NEXTHOP) return false;
  if (p->first_fragment) {
    struct ec_fragment record = {.verdict = EC_STEER};
    bpf_map_update_elem(&fragments, &fragment, &record, BPF_ANY);
  }
  return true;
}

SEC("tc")
int nexthop_in(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  struct packet p = {};
  if (!n || !n->applied || parse_packet(skb, &p) != PARSED_IP) return TC_ACT_UNSPEC;
  if (is_mapped(&p.src, p.ipv4) || is_mapped(&p.dst, p.ipv4)) return TC_ACT_UNSPEC;
  const struct ec_endpoint* pod = bpf_map_lookup_elem(&endpoints, &p.dst);
  if (!pod || p.ttl <= 1 || !is_of_nexthop(skb, &p, pod)) return TC_ACT_UNSPEC;
  if (decrement_ttl(skb, &p)) return drop(skb, pod->class_id, EC_DROP_NOT_IP);
  return return_to_pod(skb, pod, pod->class_id);
}

/* Fast for what is not ours: all traffic of the interface passes here. */
SEC("tc")
int uplink_in(struct __sk_buff* skb) {
  struct ec_ip dst = {};
  bool may_solicit = false;
  if (skb->vlan_present) return TC_ACT_UNSPEC; /* of an interface above this one */
  if (skb->protocol == bpf_htons(ETH_P_IP)) {
    __be32 v4;
    if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &v4, sizeof(v4))) return TC_ACT_UNSPEC;
    dst = ip_from_v4(v4);
  } else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
    struct ipv6hdr ip;
    if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip))) return TC_ACT_UNSPEC;
    __builtin_memcpy(&dst, &ip.daddr, sizeof(dst));
    may_solicit = ip.nexthdr == PROTO_ICMP6;
  } else if (skb->protocol == bpf_htons(ETH_P_ARP)) {
    return answer_arp(skb);
  }
  bool held = bpf_map_lookup_elem(&egress_ips, &dst);
  if (may_solicit && (held || dst.w[0] == bpf_htonl(0xff020000))) {
    int answered = answer_solicitation(skb);
    if (answered != TC_ACT_UNSPEC) return answered;
  }
  if (!held) return TC_ACT_UNSPEC;
  const struct ec_node* n = this_node();
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  return to_gateway(skb, n, 0, 0);
}

SEC("tc")
int gateway_in(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  __u32 mark = skb->mark;
  if (!(mark & EC_MARK_NEW)) return TC_ACT_UNSPEC; /* from outside */
  __u32 id = mark & EC_MARK_ID;
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!c) return drop(skb, id, EC_DROP_CLASS_REMOVED);
  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP || (!p.later_fragment && !read_transport(skb, &p)))
    return drop(skb, id, EC_DROP_NOT_IP);
  if (!slots_of(c, p.ipv4)->count) return drop(skb, id, EC_DROP_NOT_GATEWAY);
  __u32 chosen = choose_egress_ip(skb, c, &p);
  if (!chosen) return drop(skb, id, EC_DROP_NAT_EXHAUSTED);
  skb->mark = chosen | (mark & EC_MARK_TUNNELED);
  return pass(skb, id, (mark & EC_MARK_TUNNELED) ? EC_GATEWAY_OUT : EC_STEERED_LOCAL);
}

/* The fence: whatever happened inside, what goes outside has an egress IP. */
SEC("tc")
int gateway_out(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (is_of_device_itself(skb)) return TC_ACT_SHOT;
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP) return drop(skb, 0, EC_DROP_NOT_IP);
  const struct ec_endpoint* pod = bpf_map_lookup_elem(&endpoints, &p.dst);
  if (pod) return return_to_pod(skb, pod, pod->class_id);
  const struct ec_worker* worker = bpf_map_lookup_elem(&workers, &p.dst);
  if (worker) return return_to_worker(skb, n, &p, worker);
  const struct ec_egress_ip* from = bpf_map_lookup_elem(&egress_ips, &p.src);
  return from ? leave_by_uplink(skb, n, &p, from) : drop(skb, 0, EC_DROP_NOT_TRANSLATED);
}
