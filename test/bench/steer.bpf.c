// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Row F of test/bench/datapath: an egress gateway of BPF over the kernel's VXLAN, in the shape that Cilium gave it. No
 * part of the product.
 *
 *   steer     node, the pod's host veth, ingress: by the policy for (pod, destination) into the tunnel
 *   mark      gateway, VXLAN device, ingress: the tunnel's number becomes the mark that the translation goes by
 *   deliver   node, VXLAN device, ingress: straight into the pod
 *
 * It does the least that such a gateway can do: no conntrack, no identities, no look-up for services.
 */
/* bpf_helpers.h needs the types that linux/bpf.h defines, so the order of includes has a meaning here. */
// clang-format off
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
// clang-format on

#define NEXT (-1)
#define DROP 2

char LICENSE[] SEC("license") = "GPL";

struct policy_key {
  __u32 prefix_length; /* 32 of the pod's address, and those of the destination */
  __be32 pod;
  __be32 destination;
};

struct policy {
  __u32 gateway; /* in host order, as the helper wants it */
  __u32 vni;
  __u32 tunnel; /* interface */
  __u8 gateway_mac[8];
};

struct endpoint {
  __u32 host_veth;
  __u8 pod_mac[ETH_ALEN];
  __u8 host_mac[ETH_ALEN];
};

struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(max_entries, 16384);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct policy_key);
  __type(value, struct policy);
} policies SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1024);
  __type(key, __be32);
  __type(value, struct endpoint);
} endpoints SEC(".maps");

struct headers {
  struct ethhdr eth;
  struct iphdr ip;
} __attribute__((packed));

/* Of a packet that may be forwarded. */
static __always_inline struct headers* headers_of(struct __sk_buff* skb) {
  struct headers* h = (void*)(long)skb->data;
  if ((void*)(h + 1) > (void*)(long)skb->data_end) return 0;
  return h->eth.h_proto == bpf_htons(ETH_P_IP) && h->ip.ttl > 1 ? h : 0;
}

static __always_inline void decrement_ttl(struct headers* h) {
  __u32 sum = h->ip.check + bpf_htons(0x0100);
  h->ip.check = sum + (sum >= 0xffff);
  h->ip.ttl--;
}

SEC("tc")
int steer(struct __sk_buff* skb) {
  struct headers* h = headers_of(skb);
  if (!h) return NEXT;
  struct policy_key key = {.prefix_length = 64, .pod = h->ip.saddr, .destination = h->ip.daddr};
  struct policy* policy = bpf_map_lookup_elem(&policies, &key);
  if (!policy) return NEXT;

  decrement_ttl(h);
  __builtin_memcpy(h->eth.h_dest, policy->gateway_mac, ETH_ALEN);
  struct bpf_tunnel_key tunnel = {.tunnel_id = policy->vni, .remote_ipv4 = policy->gateway, .tunnel_ttl = 64};
  if (bpf_skb_set_tunnel_key(skb, &tunnel, sizeof(tunnel), BPF_F_ZERO_CSUM_TX)) return DROP;
  return bpf_redirect(policy->tunnel, 0);
}

SEC("tc")
int mark(struct __sk_buff* skb) {
  struct bpf_tunnel_key tunnel = {};
  if (bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), 0)) return DROP;
  skb->mark = tunnel.tunnel_id;
  return NEXT;
}

SEC("tc")
int deliver(struct __sk_buff* skb) {
  struct headers* h = headers_of(skb);
  if (!h) return NEXT;
  struct endpoint* pod = bpf_map_lookup_elem(&endpoints, &h->ip.daddr);
  if (!pod) return NEXT;

  decrement_ttl(h);
  __builtin_memcpy(h->eth.h_dest, pod->pod_mac, ETH_ALEN);
  __builtin_memcpy(h->eth.h_source, pod->host_mac, ETH_ALEN);
  return bpf_redirect_peer(pod->host_veth, 0);
}
