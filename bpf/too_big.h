/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Telling a pod that its packet does not fit into the tunnel, as the kernel would if it routed there (RFC 1191, RFC
 * 8201).
 */
#pragma once

#include <bpf/bpf_endian.h>

#include "packet.h"

/* Of the packet, behind its IP header: as many as hold the ports behind extension headers, without which the pod's
 * kernel finds no socket to tell; a fragment's are such. Packets that are too long have more. */
#define QUOTED_BYTES 64

/* Of `size` bytes, a multiple of 4, on the stack. */
static __always_inline __be16 checksum(const void* data, __u32 size, __u32 seed) {
  __u32 sum = bpf_csum_diff(0, 0, (void*)data, size, seed);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return ~sum;
}

static __always_inline long swap_macs(struct __sk_buff* skb) {
  __u8 macs[2 * ETH_ALEN];
  if (bpf_skb_load_bytes(skb, ETH_ALEN, macs, ETH_ALEN) || bpf_skb_load_bytes(skb, 0, macs + ETH_ALEN, ETH_ALEN))
    return -1;
  return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

static __noinline long answer_too_big_v4(struct __sk_buff* skb, __be32 from, __be32 pod, __u32 mtu) {
  struct {
    struct iphdr ip;
    struct icmp_header icmp;
    struct iphdr about; /* options are not quoted: IHL says 5 then, and the checksum is made again */
    __u8 quoted[QUOTED_BYTES];
  } m = {};
  __u8 version_ihl;
  if (bpf_skb_load_bytes(skb, ETH_HLEN, &m.about, sizeof(m.about)) ||
      bpf_skb_load_bytes(skb, ETH_HLEN, &version_ihl, 1))
    return -1;
  if (bpf_skb_load_bytes(skb, ETH_HLEN + (version_ihl & 0xf) * 4, m.quoted, sizeof(m.quoted))) return -1;
  m.about.ihl = 5;
  m.about.check = 0;
  m.about.check = checksum(&m.about, sizeof(m.about), 0);
  m.icmp.type = ICMP_UNREACHABLE;
  m.icmp.code = ICMP_FRAG_NEEDED;
  m.icmp.rest = bpf_htonl(mtu);
  m.icmp.checksum = checksum(&m.icmp, sizeof(m) - sizeof(m.ip), 0);
  m.ip.version = 4;
  m.ip.ihl = 5;
  m.ip.tos = 0xc0; /* internetwork control, as the kernel's own */
  m.ip.tot_len = bpf_htons(sizeof(m));
  m.ip.ttl = 64;
  m.ip.protocol = IPPROTO_ICMP;
  m.ip.saddr = from;
  m.ip.daddr = pod;
  m.ip.check = checksum(&m.ip, sizeof(m.ip), 0);
  if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m), 0)) return -1;
  return bpf_skb_store_bytes(skb, ETH_HLEN, &m, sizeof(m), BPF_F_INVALIDATE_HASH);
}

static __noinline long answer_too_big_v6(struct __sk_buff* skb, const struct ec_ip* from, const struct ec_ip* pod,
                                         __u32 mtu) {
  struct {
    struct ipv6hdr ip;
    struct icmp_header icmp;
    struct ipv6hdr about;
    __u8 quoted[QUOTED_BYTES];
  } m = {};
  if (bpf_skb_load_bytes(skb, ETH_HLEN, &m.about, sizeof(m.about) + sizeof(m.quoted))) return -1;
  struct {
    __be32 length, next;
  } pseudo = {bpf_htonl(sizeof(m) - sizeof(m.ip)), bpf_htonl(PROTO_ICMP6)};
  m.icmp.type = ICMP6_TOO_BIG;
  m.icmp.rest = bpf_htonl(mtu);
  m.ip.version = 6;
  m.ip.payload_len = bpf_htons(sizeof(m) - sizeof(m.ip));
  m.ip.nexthdr = PROTO_ICMP6;
  m.ip.hop_limit = 64;
  __builtin_memcpy(&m.ip.saddr, from, sizeof(*from));
  __builtin_memcpy(&m.ip.daddr, pod, sizeof(*pod));
  __u32 sum = bpf_csum_diff(0, 0, (void*)&m.ip.saddr, 32, 0);
  sum = bpf_csum_diff(0, 0, (void*)&pseudo, sizeof(pseudo), sum);
  m.icmp.checksum = checksum(&m.icmp, sizeof(m) - sizeof(m.ip), sum);
  if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m), 0)) return -1;
  return bpf_skb_store_bytes(skb, ETH_HLEN, &m, sizeof(m), BPF_F_INVALIDATE_HASH);
}

/* Makes the packet an ICMP error about itself, addressed to its sender. `from`: zero, where this node has no address of
 * the family; then it is said in the name of the destination. */
static __always_inline long answer_too_big(struct __sk_buff* skb, const struct packet* p, const struct ec_ip* from,
                                           __u32 mtu) {
  if (!from->w[3]) from = &p->dst;
  long err =
      p->ipv4 ? answer_too_big_v4(skb, from->w[3], p->src.w[3], mtu) : answer_too_big_v6(skb, from, &p->src, mtu);
  return err ? err : swap_macs(skb);
}
