// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The datapath.
 *
 *   classify    host veth of a classed pod, ingress: what the pod sends
 *   tunnel_in   egress0, ingress: what other nodes send us
 *   tunnel_out  egress0, egress: what we send them
 *
 * Every packet that is not sent right is dropped with a reason. Programs return TC_ACT_UNSPEC ("next") for
 * what they let pass, so that programs attached behind them still run.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/pkt_cls.h>

#include "conntrack.h"
#include "maps.h"
#include "packet.h"

char LICENSE[] SEC("license") = "GPL"; /* conntrack.h calls GPL-only functions */

#define PACKET_HOST 0 /* linux/if_packet.h */
#define PROBE_BYTES 60

static __always_inline void count(struct __sk_buff* skb, __u32 class_id, enum ec_event event) {
  struct ec_counter_key key = {.class_id = class_id, .event = event};
  struct ec_counter* counter = bpf_map_lookup_elem(&counters, &key);
  if (!counter) {
    struct ec_counter zero = {};
    bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
    counter = bpf_map_lookup_elem(&counters, &key);
    if (!counter) return;
  }
  counter->packets++; /* per CPU, and softirqs do not nest */
  counter->bytes += skb->len;
}

static __always_inline int drop(struct __sk_buff* skb, __u32 class_id, enum ec_event reason) {
  count(skb, class_id, reason);
  return TC_ACT_SHOT;
}

static __always_inline int pass(struct __sk_buff* skb, __u32 class_id, enum ec_event event) {
  count(skb, class_id, event);
  return TC_ACT_UNSPEC;
}

static __always_inline const struct ec_node* this_node(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&node, &zero);
}

static __always_inline __u32 verdict_of(__u32 ruleset, const struct ec_ip* ip, bool ipv4) {
  struct ec_rule_key key = {.prefixlen = 32 + 128, .tree = EC_TREE(ruleset, ipv4), .ip = *ip};
  __u32* verdict = bpf_map_lookup_elem(&rules, &key);
  return verdict ? *verdict : 0;
}

static __always_inline void set_mark(struct __sk_buff* skb, const struct ec_node* n, __u32 mark) {
  skb->mark = (skb->mark & ~n->mark_mask) | mark;
}

/* The MAC address that a node's egress0 has: the receiver of a VXLAN packet refuses its own as source. */
static __always_inline void tunnel_mac(__u8 mac[ETH_ALEN], __be32 underlay) {
  mac[0] = 0x02;
  mac[1] = 0xec;
  __builtin_memcpy(mac + 2, &underlay, sizeof(underlay));
}

static __always_inline long set_tunnel(struct __sk_buff* skb, __u32 vni, __be32 local, __be32 remote) {
  struct bpf_tunnel_key key = {
      .tunnel_id = vni,
      .remote_ipv4 = bpf_ntohl(remote), /* this field is in host order */
      .local_ipv4 = bpf_ntohl(local),
      .tunnel_ttl = 64,
  };
  __u8 macs[2 * ETH_ALEN];
  tunnel_mac(macs, remote);
  tunnel_mac(macs + ETH_ALEN, local);
  long err = bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
  return err ? err : bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/*
 * Whether the gateway answers. No daemon watches it: while packets go to it and nothing comes back, a worker
 * sends it a probe now and then (a trimmed copy of the packet at hand, VNI 0), which its tunnel_in returns.
 */
static __always_inline bool gateway_answers(struct __sk_buff* skb, const struct ec_node* n, __u32 class_id,
                                            const struct ec_class* c) {
  struct ec_gateway* gateway = bpf_map_lookup_elem(&gateways, &c->gateway);
  if (!gateway) return false;
  __u64 now = bpf_ktime_get_ns();
  __u64 last_probe = gateway->last_probe_ns;
  bool answers = gateway->unanswered < EC_PROBES_UNANSWERED;
  if (now - gateway->last_seen_ns < EC_PROBE_INTERVAL_NS || now - last_probe < EC_PROBE_INTERVAL_NS) return answers;
  if (__sync_val_compare_and_swap(&gateway->last_probe_ns, last_probe, now) != last_probe) return answers;

  __u32 mark = skb->mark;
  if (set_tunnel(skb, EC_VNI_PROBE, n->underlay, c->gateway.w[3]) == 0) {
    set_mark(skb, n, n->probe_mark);
    __sync_fetch_and_add(&gateway->unanswered, 1);
    bpf_clone_redirect(skb, n->tunnel_ifindex, 0);
    count(skb, class_id, EC_PROBE_SENT);
  }
  skb->mark = mark;
  return answers;
}

static __always_inline void gateway_seen(const struct ec_ip* address) {
  struct ec_gateway* gateway = bpf_map_lookup_elem(&gateways, address);
  if (!gateway) return;
  __u64 now = bpf_ktime_get_ns();
  /* not with every packet: the cache line is shared by all CPUs */
  if (gateway->unanswered || now - gateway->last_seen_ns > EC_PROBE_INTERVAL_NS / 4) {
    gateway->last_seen_ns = now;
    gateway->unanswered = 0;
  }
}

static __always_inline bool sent_by_pod(const struct packet* p, const struct ec_attachment* pod, __u32 ifindex) {
  if (!same_mac(p->src_mac, pod->pod_mac)) return false;
  const struct ec_endpoint* endpoint = bpf_map_lookup_elem(&endpoints, &p->src);
  return endpoint && endpoint->ifindex == ifindex;
}

/* For the host's own IP stack, where nft waits for what is marked: were the veth a port of a bridge to the node's LAN,
 * the packet might else be bridged past it. */
static __always_inline long to_host(struct __sk_buff* skb, const struct ec_attachment* pod) {
  bpf_skb_change_type(skb, PACKET_HOST);
  return bpf_skb_store_bytes(skb, 0, pod->host_mac, ETH_ALEN, 0);
}

SEC("tc")
int classify(struct __sk_buff* skb) {
  __u32 ifindex = skb->ifindex;
  const struct ec_node* n = this_node();
  const struct ec_attachment* pod = bpf_map_lookup_elem(&attachments, &ifindex);
  if (!n || !pod) return drop(skb, 0, EC_DROP_NO_ATTACHMENT);
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
  if (stays_on_link(&p)) return pass(skb, id, EC_BYPASSED);
  if (!sent_by_pod(&p, pod, ifindex)) return drop(skb, id, EC_DROP_SPOOFED);
  if (verdict_of(EC_RULESET_NEVER, &p.dst, p.ipv4)) {
    set_mark(skb, n, n->bypass_mark);
    return pass(skb, id, EC_BYPASSED);
  }

  if (!n->applied) return drop(skb, id, EC_DROP_DATAPATH_DOWN);
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!c) return drop(skb, id, EC_DROP_CLASS_REMOVED);

  __u32 verdict = verdict_of(c->ruleset, &p.dst, p.ipv4);
  if (verdict == EC_BYPASS) return pass(skb, id, EC_BYPASSED);
  if (!p.ipv4) return drop(skb, id, EC_DROP_FAMILY);
  if (verdict != EC_STEER) return pass(skb, id, EC_BYPASSED);

  bool answers = answers_inbound(skb, &p);
  if (answers || c->path == EC_PATH_LOCAL) {
    set_mark(skb, n, answers ? n->reply_mark : c->mark | n->pending_mark);
    if (to_host(skb, pod)) return drop(skb, id, EC_DROP_NOT_IP);
    return pass(skb, id, answers ? EC_REPLIED : EC_STEERED_LOCAL);
  }
  set_mark(skb, n, c->mark);
  if (!gateway_answers(skb, n, id, c)) return drop(skb, id, EC_DROP_GATEWAY_UNREACHABLE);
  if (set_tunnel(skb, c->vni, n->underlay, c->gateway.w[3])) return drop(skb, id, EC_DROP_TUNNEL_FAILED);
  count(skb, id, EC_STEERED_TUNNEL);
  return bpf_redirect(n->tunnel_ifindex, 0);
}

/* A packet of one of our pods has come back: straight into the pod, past the node's own filters, which never
 * saw the way out and would call it invalid. */
static __always_inline int return_to_pod(struct __sk_buff* skb, const struct ec_endpoint* pod, __u32 class_id,
                                         const struct ec_ip* sender) {
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &class_id);
  if (!c || pod->class_id != class_id || c->path != EC_PATH_TUNNEL || !same_ip(&c->gateway, sender))
    return drop(skb, class_id, EC_DROP_WRONG_GATEWAY);
  gateway_seen(sender);
  if (bpf_skb_store_bytes(skb, 0, pod->pod_mac, ETH_ALEN, 0) ||
      bpf_skb_store_bytes(skb, ETH_ALEN, pod->host_mac, ETH_ALEN, 0))
    return drop(skb, class_id, EC_DROP_NOT_IP);
  bpf_skb_change_type(skb, PACKET_HOST);
  count(skb, class_id, EC_RETURNED);
  return bpf_redirect_peer(pod->ifindex, 0);
}

static __always_inline bool learn_worker(const struct ec_ip* pod, const struct ec_ip* sender, __u32 class_id) {
  const struct ec_worker* known = bpf_map_lookup_elem(&workers, pod);
  if (known && known->class_id == class_id && same_ip(&known->node, sender)) return true;
  struct ec_worker worker = {.node = *sender, .class_id = class_id};
  return bpf_map_update_elem(&workers, pod, &worker, BPF_ANY) == 0;
}

SEC("tc")
int tunnel_in(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  struct bpf_tunnel_key key = {};
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) return drop(skb, 0, EC_DROP_STRAY);
  struct ec_ip sender = ip_from_v4(bpf_htonl(key.remote_ipv4));
  if (!verdict_of(EC_RULESET_SENDERS, &sender, true)) return drop(skb, 0, EC_DROP_UNKNOWN_SENDER);

  if (key.tunnel_id == EC_VNI_PROBE) {
    if (set_tunnel(skb, EC_VNI_ANSWER, bpf_htonl(key.local_ipv4), sender.w[3]))
      return drop(skb, 0, EC_DROP_TUNNEL_FAILED);
    count(skb, 0, EC_PROBE_ANSWERED);
    set_mark(skb, n, n->probe_mark);
    return bpf_redirect(n->tunnel_ifindex, 0);
  }
  if (key.tunnel_id == EC_VNI_ANSWER) {
    gateway_seen(&sender);
    return TC_ACT_SHOT;
  }

  const __u32* id = bpf_map_lookup_elem(&vnis, &key.tunnel_id);
  if (!id) return drop(skb, 0, EC_DROP_UNKNOWN_CLASS);
  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP) return drop(skb, *id, EC_DROP_NOT_IP);

  const struct ec_endpoint* pod = bpf_map_lookup_elem(&endpoints, &p.dst);
  if (pod) return return_to_pod(skb, pod, *id, &sender);

  const struct ec_class* c = bpf_map_lookup_elem(&classes, id);
  if (!c || c->path != EC_PATH_LOCAL) return drop(skb, *id, EC_DROP_NOT_GATEWAY);
  if (!p.ipv4) return drop(skb, *id, EC_DROP_FAMILY);
  if (stays_on_link(&p) || verdict_of(EC_RULESET_NEVER, &p.dst, p.ipv4)) return drop(skb, *id, EC_DROP_BAD_DESTINATION);
  if (!learn_worker(&p.src, &sender, *id)) return drop(skb, *id, EC_DROP_WORKER_TABLE);
  bpf_skb_change_type(skb, PACKET_HOST);
  set_mark(skb, n, c->mark | n->pending_mark);
  return pass(skb, *id, EC_GATEWAY_OUT);
}

/* The mark must not go on to the outer packet: routing and nft would take that for a packet of the class. */
SEC("tc")
int tunnel_out(struct __sk_buff* skb) {
  const struct ec_node* n = this_node();
  if (!n || !n->applied) return drop(skb, 0, EC_DROP_DATAPATH_DOWN);
  __u32 mark = skb->mark & n->mark_mask;
  set_mark(skb, n, 0);

  if (mark == n->probe_mark) {
    if (skb->len > PROBE_BYTES) bpf_skb_change_tail(skb, PROBE_BYTES, 0);
    return TC_ACT_UNSPEC;
  }
  if (mark == 0) return drop(skb, 0, EC_DROP_STRAY);
  if (mark & n->pending_mark) return drop(skb, 0, EC_DROP_UNVERIFIED);
  if (mark != n->return_mark) return TC_ACT_UNSPEC; /* classify has set the tunnel key */

  struct packet p = {};
  if (parse_packet(skb, &p) != PARSED_IP) return drop(skb, 0, EC_DROP_NOT_IP);
  const struct ec_worker* worker = bpf_map_lookup_elem(&workers, &p.dst);
  if (!worker) return drop(skb, 0, EC_DROP_WORKER_UNKNOWN);
  __u32 id = worker->class_id;
  const struct ec_class* c = bpf_map_lookup_elem(&classes, &id);
  if (!c || c->path != EC_PATH_LOCAL) return drop(skb, id, EC_DROP_CLASS_REMOVED);
  if (set_tunnel(skb, c->vni, c->gateway.w[3], worker->node.w[3])) return drop(skb, id, EC_DROP_TUNNEL_FAILED);
  return pass(skb, id, EC_GATEWAY_BACK);
}
