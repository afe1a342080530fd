/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A packet's headers, read once. */
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

#define IP_DONT_FRAGMENT 0x4000
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_ACK 0x10
#define SCTP_INIT 1

/* linux/icmp.h, linux/icmpv6.h and linux/in6.h drag in libc's headers. */
#define ICMP_ECHOREPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_FRAG_NEEDED 4 /* code */
#define ICMP_ECHO 8
#define ICMP6_TOO_BIG 2
#define ICMP6_ECHO 128
#define ICMP6_ECHOREPLY 129
#define ICMP6_NEIGHBOUR_SOLICITATION 135
#define ICMP6_NEIGHBOUR_ADVERTISEMENT 136
#define PROTO_ICMP6 58
#define MAX_EXTENSIONS 6

/* An index that is below `size`, a power of 2, in a form that the verifier believes wherever the compiler moves it. */
#define BOUNDED(index, size)          \
  ({                                  \
    __u32 bounded = (index);          \
    asm volatile("" : "+r"(bounded)); \
    bounded&((size)-1);               \
  })

struct icmp_header {
  __u8 type, code;
  __be16 checksum;
  __be32 rest;
};

struct packet {
  struct ec_ip src, dst;
  __u8 src_mac[ETH_ALEN];
  bool ipv4;
  __u8 proto; /* of the transport; with IPv6, behind the extension headers */
  __u8 ttl;
  bool dont_fragment;  /* IPv6: always */
  bool first_fragment; /* of several; its ports are there */
  bool later_fragment; /* no ports */
  __u32 fragment_id;
  __u32 l4; /* offset of the transport header */
  /* filled by read_transport(): */
  __be16 sport, dport;
  __u8 tcp_flags;
  __u8 type; /* of ICMP; of SCTP's first chunk */
};

enum parsed { NOT_PARSED, PARSED_ARP, PARSED_IP };

static __always_inline struct ec_ip ip_from_v4(__be32 v4) {
  struct ec_ip ip = {.w = {0, 0, bpf_htonl(0xffff), v4}};
  return ip;
}

static __always_inline bool is_v4(const struct ec_ip* ip) {
  return ip->w[2] == bpf_htonl(0xffff) && ip->w[1] == 0 && ip->w[0] == 0;
}

/* IPv4-mapped addresses are never on the wire (RFC 6890), and in the maps they are IPv4. */
static __always_inline bool is_mapped(const struct ec_ip* ip, bool ipv4) { return !ipv4 && is_v4(ip); }

static __always_inline bool same_ip(const struct ec_ip* a, const struct ec_ip* b) {
  return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline bool same_mac(const __u8* a, const __u8* b) {
  for (int i = 0; i < ETH_ALEN; i++)
    if (a[i] != b[i]) return false;
  return true;
}

static __always_inline __u32 family_of(const struct packet* p) { return p->ipv4 ? EC_IPV4 : EC_IPV6; }

/* Link-local, multicast and broadcast never leave the link: they are the CNI's business alone. */
static __always_inline bool stays_on_link(const struct packet* p) {
  if (p->ipv4) {
    __u32 dst = bpf_ntohl(p->dst.w[3]);
    return (dst >> 16) == 0xa9fe || (dst >> 28) == 0xe || dst == 0xffffffff;
  }
  __u32 top = bpf_ntohl(p->dst.w[0]);
  return (top >> 24) == 0xff || (top >> 22) == 0x3fa; /* ff00::/8, fe80::/10 */
}

/* A neighbour that is asked for, or answers, by an address beyond the link: the pod's router, whose presence its kernel
 * checks now and then, from its link-local address. Nobody forwards that (RFC 4861, 7.1: hop limit 255; RFC
 * 4291, 2.5.6: nothing with such a source). */
static __always_inline bool is_neighbour_discovery(struct __sk_buff* skb, const struct packet* p) {
  __u8 type;
  if (p->ipv4 || p->proto != PROTO_ICMP6 || p->ttl != 255 || (bpf_ntohl(p->src.w[0]) >> 22) != 0x3fa) return false;
  if (p->later_fragment || p->first_fragment || bpf_skb_load_bytes(skb, p->l4, &type, 1) < 0) return false;
  return type == ICMP6_NEIGHBOUR_SOLICITATION || type == ICMP6_NEIGHBOUR_ADVERTISEMENT;
}

/* The first bytes of every IPv6 extension header (RFC 8200, 4.2 to 4.6), and of the fragment header. */
struct extension {
  __u8 next, length; /* in 8 bytes, without the first 8 */
  __be16 offset;     /* of a fragment header: and flags */
  __be32 id;
};

/* False: the chain of headers is broken, or longer than anybody needs it. */
static __always_inline bool skip_extensions(struct __sk_buff* skb, struct packet* p) {
  for (int i = 0; i <= MAX_EXTENSIONS; i++) {
    struct extension header;
    switch (p->proto) {
      case IPPROTO_HOPOPTS:
      case IPPROTO_ROUTING:
      case IPPROTO_DSTOPTS:
      case IPPROTO_FRAGMENT:
        break;
      default:
        return true;
    }
    if (i == MAX_EXTENSIONS || p->later_fragment) return p->later_fragment;
    if (bpf_skb_load_bytes(skb, p->l4, &header, sizeof(header)) < 0) return false;
    if (p->proto == IPPROTO_FRAGMENT) {
      __u16 fragment = bpf_ntohs(header.offset);
      p->later_fragment = fragment & 0xfff8;
      p->first_fragment = !p->later_fragment && (fragment & 1);
      p->fragment_id = header.id;
      p->l4 += sizeof(header);
    } else {
      p->l4 += (header.length + 1) * 8;
    }
    p->proto = header.next;
  }
  return false;
}

static __always_inline enum parsed parse_ip(struct __sk_buff* skb, __u32 offset, bool ipv4, struct packet* p) {
  p->ipv4 = ipv4;
  if (ipv4) {
    struct iphdr ip;
    if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5) return NOT_PARSED;
    __u16 fragment = bpf_ntohs(ip.frag_off);
    p->src = ip_from_v4(ip.saddr);
    p->dst = ip_from_v4(ip.daddr);
    p->proto = ip.protocol;
    p->ttl = ip.ttl;
    p->dont_fragment = fragment & IP_DONT_FRAGMENT;
    p->later_fragment = fragment & IP_FRAGMENT_OFFSET;
    p->first_fragment = !p->later_fragment && (fragment & IP_MORE_FRAGMENTS);
    p->fragment_id = ip.id;
    p->l4 = offset + ip.ihl * 4;
    return PARSED_IP;
  }
  struct ipv6hdr ip;
  if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0 || ip.version != 6) return NOT_PARSED;
  __builtin_memcpy(&p->src, &ip.saddr, sizeof(p->src));
  __builtin_memcpy(&p->dst, &ip.daddr, sizeof(p->dst));
  p->proto = ip.nexthdr;
  p->ttl = ip.hop_limit;
  p->dont_fragment = true;
  p->l4 = offset + sizeof(ip);
  return skip_extensions(skb, p) ? PARSED_IP : NOT_PARSED;
}

/* Global functions, here and elsewhere: the verifier looks at each once, not once for every way that leads there. It
 * wants them to ask whether there is a pointer. */
__noinline int parse_packet(struct __sk_buff* skb, struct packet* p) {
  struct ethhdr eth;
  if (!p) return NOT_PARSED;
  if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) < 0) return NOT_PARSED;
  __builtin_memcpy(p->src_mac, eth.h_source, ETH_ALEN);
  if (eth.h_proto == bpf_htons(ETH_P_IP)) return parse_ip(skb, sizeof(eth), true, p);
  if (eth.h_proto == bpf_htons(ETH_P_IPV6)) return parse_ip(skb, sizeof(eth), false, p);
  return eth.h_proto == bpf_htons(ETH_P_ARP) ? PARSED_ARP : NOT_PARSED;
}

static __always_inline bool is_icmp(const struct packet* p) {
  return p->proto == (p->ipv4 ? IPPROTO_ICMP : PROTO_ICMP6);
}

static __always_inline bool is_echo_request(const struct packet* p) {
  return is_icmp(p) && p->type == (p->ipv4 ? ICMP_ECHO : ICMP6_ECHO);
}

static __always_inline bool is_echo_reply(const struct packet* p) {
  return is_icmp(p) && p->type == (p->ipv4 ? ICMP_ECHOREPLY : ICMP6_ECHOREPLY);
}

/* RFC 792: the types whose payload is the packet that the message is about; RFC 4443: types below 128. */
static __always_inline bool is_icmp_error(const struct packet* p) {
  if (!is_icmp(p)) return false;
  if (!p->ipv4) return p->type < ICMP6_ECHO;
  return p->type == ICMP_UNREACHABLE || p->type == 4 || p->type == 5 || p->type == 11 || p->type == 12;
}

/* Ports, or what stands for them: the id of an ICMP echo is its source port. Not of later fragments. False: the packet
 * ends within its transport header. */
__noinline int read_transport(struct __sk_buff* skb, struct packet* p) {
  __be16 words[4];
  if (!p) return false;
  p->sport = p->dport = 0;
  switch (p->proto) {
    case IPPROTO_TCP:
      if (bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp_flags, 1) < 0) return false;
      break;
    case IPPROTO_SCTP:
      bpf_skb_load_bytes(skb, p->l4 + 12, &p->type, 1);
      break;
    case IPPROTO_UDP:
      break;
    default:
      if (!is_icmp(p)) return true;
      if (bpf_skb_load_bytes(skb, p->l4, words, sizeof(words)) < 0) return false;
      p->type = bpf_ntohs(words[0]) >> 8;
      if (is_echo_request(p) || is_echo_reply(p)) p->sport = words[2];
      return true;
  }
  if (bpf_skb_load_bytes(skb, p->l4, words, 4) < 0) return false;
  p->sport = words[0];
  p->dport = words[1];
  return true;
}

/* The packet that an ICMP error is about. False: it does not say. */
static __always_inline bool read_packet_in_error(struct __sk_buff* skb, const struct packet* error,
                                                 struct packet* about) {
  if (parse_ip(skb, error->l4 + sizeof(struct icmp_header), error->ipv4, about) != PARSED_IP) return false;
  if (about->later_fragment) return false;
  __be16 words[4];
  switch (about->proto) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
    case IPPROTO_SCTP: /* all that an error has to have of it are 8 bytes */
      if (bpf_skb_load_bytes(skb, about->l4, words, 4) < 0) return false;
      about->sport = words[0];
      about->dport = words[1];
      return true;
    default:
      return !is_icmp(about) || read_transport(skb, about);
  }
}
