/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The headers of a packet, of either family, as one flat record. Reads by copy, so that data outside the linear
 * part of the skb (AF_PACKET, GRO) is no special case. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>

#include "egressclass.h"

#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_ACK 0x10

struct icmp_header { /* linux/icmp.h drags in libc's headers */
  __u8 type, code;
  __be16 checksum;
  __be32 rest;
};

struct packet {
  struct ec_ip src, dst;
  __u8 src_mac[ETH_ALEN];
  bool ipv4;
  __u8 proto;
  bool first_fragment; /* of several; its ports are there */
  bool later_fragment; /* no ports */
  __u16 fragment_id;
  __u32 l4; /* offset of the transport header */
  /* filled by read_ports(): */
  __be16 sport, dport;
  __u8 tcp_flags;
};

enum parsed { NOT_PARSED, PARSED_ARP, PARSED_IP };

static __always_inline struct ec_ip ip_from_v4(__be32 v4) {
  struct ec_ip ip = {.w = {0, 0, bpf_htonl(0xffff), v4}};
  return ip;
}

static __always_inline bool same_ip(const struct ec_ip* a, const struct ec_ip* b) {
  return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline bool same_mac(const __u8* a, const __u8* b) {
  for (int i = 0; i < ETH_ALEN; i++)
    if (a[i] != b[i]) return false;
  return true;
}

/* Link-local, multicast and broadcast never leave the link: they are the CNI's business alone. */
static __always_inline bool stays_on_link(const struct packet* p) {
  if (p->ipv4) {
    __u32 dst = bpf_ntohl(p->dst.w[3]);
    return (dst >> 16) == 0xa9fe || (dst >> 28) == 0xe || dst == 0xffffffff;
  }
  __u32 top = bpf_ntohl(p->dst.w[0]);
  return (top >> 24) == 0xff || (top >> 22) == 0x3fa; /* ff00::/8, fe80::/10 */
}

static __always_inline enum parsed parse_packet(struct __sk_buff* skb, struct packet* p) {
  struct ethhdr eth;
  if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) < 0) return NOT_PARSED;
  __builtin_memcpy(p->src_mac, eth.h_source, ETH_ALEN);

  if (eth.h_proto == bpf_htons(ETH_P_IP)) {
    struct iphdr ip;
    if (bpf_skb_load_bytes(skb, sizeof(eth), &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5) return NOT_PARSED;
    __u16 fragment = bpf_ntohs(ip.frag_off);
    p->ipv4 = true;
    p->src = ip_from_v4(ip.saddr);
    p->dst = ip_from_v4(ip.daddr);
    p->proto = ip.protocol;
    p->later_fragment = fragment & IP_FRAGMENT_OFFSET;
    p->first_fragment = !p->later_fragment && (fragment & IP_MORE_FRAGMENTS);
    p->fragment_id = ip.id;
    p->l4 = sizeof(eth) + ip.ihl * 4;
    return PARSED_IP;
  }
  if (eth.h_proto == bpf_htons(ETH_P_IPV6)) {
    struct ipv6hdr ip;
    if (bpf_skb_load_bytes(skb, sizeof(eth), &ip, sizeof(ip)) < 0 || ip.version != 6) return NOT_PARSED;
    p->ipv4 = false;
    __builtin_memcpy(&p->src, &ip.saddr, sizeof(p->src));
    __builtin_memcpy(&p->dst, &ip.daddr, sizeof(p->dst));
    p->proto = ip.nexthdr;
    p->l4 = sizeof(eth) + sizeof(ip);
    return PARSED_IP;
  }
  return eth.h_proto == bpf_htons(ETH_P_ARP) ? PARSED_ARP : NOT_PARSED;
}

/* Ports (and TCP flags) at `offset`. False: too short. Only for TCP and UDP. */
static __always_inline bool read_ports(struct __sk_buff* skb, __u32 offset, struct packet* p) {
  __be16 ports[2];
  if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)) < 0) return false;
  p->sport = ports[0];
  p->dport = ports[1];
  p->tcp_flags = 0;
  return p->proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, offset + 13, &p->tcp_flags, 1) == 0;
}
