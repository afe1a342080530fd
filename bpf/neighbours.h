/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Who has an egress IP? No interface of the host does: it is answered here, as long as the map says that this node
 * holds it, and on the interface to whose network it belongs. */
#pragma once

#include "count.h"
#include "maps.h"
#include "packet.h"
#include "too_big.h"

#define ARP_REQUEST 1 /* linux/if_arp.h drags in libc's headers */
#define ARP_REPLY 2
#define NA_SOLICITED 0x40000000
#define NA_OVERRIDE 0x20000000
#define NA_ROUTER 0x80000000
#define OPTION_TARGET_MAC 2

struct net_device___mac { /* matched with the kernel's by libbpf */
  const unsigned char* dev_addr;
} __attribute__((preserve_access_index));
struct sk_buff___device {
  struct net_device___mac* dev;
} __attribute__((preserve_access_index));

extern void* bpf_cast_to_kern_ctx(void* context) __ksym; /* kernel 6.2 and newer */

/* The address that the interface has now. */
static __always_inline long own_mac(struct __sk_buff* skb, __u8 mac[ETH_ALEN]) {
  struct sk_buff___device* kernels = bpf_cast_to_kern_ctx(skb);
  return bpf_probe_read_kernel(mac, ETH_ALEN, kernels->dev->dev_addr);
}

static __always_inline const struct ec_egress_ip* held_on(const struct ec_ip* ip, __u32 ifindex) {
  const struct ec_egress_ip* held = bpf_map_lookup_elem(&egress_ips, ip);
  return held && held->ifindex == ifindex ? held : 0;
}

struct arp_message {
  __be16 hardware, protocol;
  __u8 hardware_length, protocol_length;
  __be16 operation;
  __u8 sender_mac[ETH_ALEN];
  __u8 sender_ip[4];
  __u8 target_mac[ETH_ALEN];
  __u8 target_ip[4];
};

static __always_inline int answer_arp(struct __sk_buff* skb) {
  struct arp_message m;
  if (bpf_skb_load_bytes(skb, ETH_HLEN, &m, sizeof(m)) || m.operation != bpf_htons(ARP_REQUEST) ||
      m.protocol != bpf_htons(ETH_P_IP) || m.hardware_length != ETH_ALEN || m.protocol_length != 4)
    return TC_ACT_UNSPEC;
  __be32 asked;
  __builtin_memcpy(&asked, m.target_ip, sizeof(asked));
  struct ec_ip ip = ip_from_v4(asked);
  struct {
    __u8 dst[ETH_ALEN], src[ETH_ALEN];
  } frame;
  if (!held_on(&ip, skb->ifindex) || own_mac(skb, frame.src)) return TC_ACT_UNSPEC;
  __builtin_memcpy(frame.dst, m.sender_mac, ETH_ALEN);
  __builtin_memcpy(m.target_mac, m.sender_mac, ETH_ALEN);
  __builtin_memcpy(m.target_ip, m.sender_ip, 4);
  __builtin_memcpy(m.sender_mac, frame.src, ETH_ALEN);
  __builtin_memcpy(m.sender_ip, &asked, 4);
  m.operation = bpf_htons(ARP_REPLY);
  if (bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame), 0) || bpf_skb_store_bytes(skb, ETH_HLEN, &m, sizeof(m), 0))
    return TC_ACT_SHOT;
  return bpf_redirect(skb->ifindex, 0);
}

struct nd_message { /* RFC 4861, 4.3 and 4.4 */
  struct ipv6hdr ip;
  __u8 type, code;
  __be16 checksum;
  __be32 flags;
  struct ec_ip target;
  __u8 option, option_length;
  __u8 mac[ETH_ALEN];
};

/* Who asks from no address wants to have this one (RFC 4862, 5.4.3): all are told that it is somebody's. */
static __noinline int answer_solicitation(struct __sk_buff* skb) {
  struct nd_message m = {};
  struct ec_ip nobody = {};
  if (bpf_skb_load_bytes(skb, ETH_HLEN, &m, sizeof(m) - 8) || m.type != ICMP6_NEIGHBOUR_SOLICITATION || m.code ||
      m.ip.hop_limit != 255 || !held_on(&m.target, skb->ifindex))
    return TC_ACT_UNSPEC;
  struct {
    __u8 dst[ETH_ALEN], src[ETH_ALEN];
  } frame = {.dst = {0x33, 0x33, 0, 0, 0, 1}};
  if (own_mac(skb, frame.src)) return TC_ACT_UNSPEC;
  struct ec_ip asking;
  __builtin_memcpy(&asking, &m.ip.saddr, sizeof(asking));
  bool probe = same_ip(&asking, &nobody);
  if (probe) {
    asking.w[0] = bpf_htonl(0xff020000);
    asking.w[3] = bpf_htonl(1);
  } else if (bpf_skb_load_bytes(skb, ETH_ALEN, frame.dst, ETH_ALEN)) {
    return TC_ACT_UNSPEC;
  }
  __builtin_memcpy(&m.ip.daddr, &asking, sizeof(asking));
  __builtin_memcpy(&m.ip.saddr, &m.target, sizeof(m.target));
  m.ip.payload_len = bpf_htons(sizeof(m) - sizeof(m.ip));
  m.type = ICMP6_NEIGHBOUR_ADVERTISEMENT;
  m.flags = bpf_htonl(probe ? NA_OVERRIDE | NA_ROUTER : NA_SOLICITED | NA_OVERRIDE | NA_ROUTER);
  m.option = OPTION_TARGET_MAC;
  m.option_length = 1;
  __builtin_memcpy(m.mac, frame.src, ETH_ALEN);
  m.checksum = 0;
  struct {
    __be32 length, next;
  } pseudo = {bpf_htonl(sizeof(m) - sizeof(m.ip)), bpf_htonl(PROTO_ICMP6)};
  __u32 sum = bpf_csum_diff(0, 0, (void*)&m.ip.saddr, 32, 0);
  sum = bpf_csum_diff(0, 0, (void*)&pseudo, sizeof(pseudo), sum);
  m.checksum = checksum(&m.type, sizeof(m) - sizeof(m.ip), sum);
  if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m), 0) || bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame), 0) ||
      bpf_skb_store_bytes(skb, ETH_HLEN, &m, sizeof(m), 0))
    return TC_ACT_SHOT;
  return bpf_redirect(skb->ifindex, 0);
}
