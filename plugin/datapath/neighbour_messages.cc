// SPDX-License-Identifier: Apache-2.0
#include "datapath/neighbour_messages.h"

#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/in.h>
#include <netinet/ip6.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace egressclass {
namespace {

constexpr Mac kEverybody = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

template <class Packet>
Status send(const Fd& socket, const Link& link, const Mac& mac, std::uint16_t protocol, const Packet& packet,
            const std::string& what) {
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = htons(protocol);
  to.sll_ifindex = link.ifindex;
  to.sll_halen = static_cast<unsigned char>(mac.size());
  std::memcpy(to.sll_addr, mac.data(), mac.size());
  if (::sendto(socket.get(), &packet, sizeof(packet), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) < 0)
    return system_error(what, link.name, errno);
  return Ok{};
}

/// `sender`: the unspecified address when it asks, the address itself when it tells.
ether_arp arp_message(int operation, const Link& link, std::uint32_t sender, std::uint32_t target) {
  ether_arp arp{};
  arp.arp_hrd = htons(ARPHRD_ETHER);
  arp.arp_pro = htons(ETH_P_IP);
  arp.arp_hln = ETH_ALEN;
  arp.arp_pln = sizeof(target);
  arp.arp_op = htons(static_cast<std::uint16_t>(operation));
  std::memcpy(arp.arp_sha, link.mac.data(), link.mac.size());
  std::memcpy(arp.arp_spa, &sender, sizeof(sender));
  std::memcpy(arp.arp_tpa, &target, sizeof(target));
  if (operation == ARPOP_REPLY) std::memcpy(arp.arp_tha, kEverybody.data(), kEverybody.size());
  return arp;
}

struct Solicitation {
  ip6_hdr ip;
  nd_neighbor_solicit message;
};

struct Advertisement {
  ip6_hdr ip;
  nd_neighbor_advert message;
  nd_opt_hdr option;
  std::array<std::uint8_t, ETH_ALEN> mac;
};

/// RFC 4443, 2.3.
template <class Packet>
std::uint16_t checksum_of(const Packet& packet) {
  std::array<std::uint8_t, sizeof(packet)> bytes;
  std::memcpy(bytes.data(), &packet, sizeof(packet));
  std::uint32_t sum = sizeof(packet) - sizeof(ip6_hdr) + IPPROTO_ICMPV6;
  for (std::size_t i = offsetof(ip6_hdr, ip6_src); i < bytes.size(); i += 2)
    sum += static_cast<std::uint32_t>(bytes[i]) << 8U | bytes[i + 1];
  while (sum > UINT16_MAX) sum = (sum & UINT16_MAX) + (sum >> 16U);
  return htons(static_cast<std::uint16_t>(~sum));
}

template <class Packet>
Packet icmp6_message(const std::array<std::uint8_t, 16>& to) {
  Packet packet{};
  packet.ip.ip6_flow = htonl(6U << 28U);
  packet.ip.ip6_plen = htons(sizeof(packet) - sizeof(packet.ip));
  packet.ip.ip6_nxt = IPPROTO_ICMPV6;
  packet.ip.ip6_hops = 255;
  std::memcpy(&packet.ip.ip6_dst, to.data(), to.size());
  return packet;
}

/// Of an IPv6 group (RFC 2464, 7).
Mac mac_of(const std::array<std::uint8_t, 16>& group) {
  return {0x33, 0x33, group[12], group[13], group[14], group[15]};
}

}  // namespace

Result<NeighbourMessages> NeighbourMessages::open() {
  Fd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0));  // 0: it receives nothing
  if (!socket) return system_error("cannot open a packet socket", "AF_PACKET", errno);
  return NeighbourMessages(std::move(socket));
}

Status NeighbourMessages::ask(const Link& link, const Ip& ip) const {
  const std::string what = "cannot ask who has " + ip.str();
  if (ip.is_v4()) return send(socket_, link, kEverybody, ETH_P_ARP, arp_message(ARPOP_REQUEST, link, 0, ip.v4()), what);
  // The group of all that have an address with this end (RFC 4291, 2.7.1).
  const std::array<std::uint8_t, 16> group = {0xff,         0x02,         0,           0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff,
                                              ip.bytes[13], ip.bytes[14], ip.bytes[15]};
  auto packet = icmp6_message<Solicitation>(group);
  packet.message.nd_ns_type = ND_NEIGHBOR_SOLICIT;
  std::memcpy(&packet.message.nd_ns_target, ip.bytes.data(), ip.bytes.size());
  packet.message.nd_ns_cksum = checksum_of(packet);
  return send(socket_, link, mac_of(group), ETH_P_IPV6, packet, what);
}

Status NeighbourMessages::tell(const Link& link, const Ip& ip) const {
  const std::string what = "cannot announce " + ip.str();
  if (ip.is_v4()) {
    for (const int operation : {ARPOP_REQUEST, ARPOP_REPLY})
      if (auto sent = send(socket_, link, kEverybody, ETH_P_ARP, arp_message(operation, link, ip.v4(), ip.v4()), what);
          !sent)
        return sent;
    return Ok{};
  }
  // Unsolicited, to all nodes (RFC 4861, 7.2.6).
  const std::array<std::uint8_t, 16> all = {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  auto packet = icmp6_message<Advertisement>(all);
  std::memcpy(&packet.ip.ip6_src, ip.bytes.data(), ip.bytes.size());
  packet.message.nd_na_type = ND_NEIGHBOR_ADVERT;
  packet.message.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE | ND_NA_FLAG_ROUTER;
  std::memcpy(&packet.message.nd_na_target, ip.bytes.data(), ip.bytes.size());
  packet.option = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1};
  std::memcpy(packet.mac.data(), link.mac.data(), link.mac.size());
  packet.message.nd_na_cksum = checksum_of(packet);
  return send(socket_, link, mac_of(all), ETH_P_IPV6, packet, what);
}

}  // namespace egressclass
