// SPDX-License-Identifier: Apache-2.0
#include "datapath/announce.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "util/fd.h"

namespace egressclass {
namespace {

Error not_announced(const Ip& ip, const Link& link) {
  return system_error("cannot announce " + ip.str(), link.name, errno);
}

/// By ARP requests and replies about itself: of both kinds there are hosts that believe only one.
Status announce_v4(const Fd& socket, const Link& link, const Ip& ip) {
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = htons(ETH_P_ARP);
  to.sll_ifindex = link.ifindex;
  to.sll_halen = ETH_ALEN;
  std::memset(to.sll_addr, 0xff, ETH_ALEN);

  ether_arp arp{};
  arp.arp_hrd = htons(ARPHRD_ETHER);
  arp.arp_pro = htons(ETH_P_IP);
  arp.arp_hln = ETH_ALEN;
  arp.arp_pln = 4;
  const std::uint32_t address = ip.v4();
  std::memcpy(arp.arp_sha, link.mac.data(), ETH_ALEN);
  std::memcpy(arp.arp_spa, &address, sizeof(address));
  std::memcpy(arp.arp_tpa, &address, sizeof(address));
  for (const int operation : {ARPOP_REQUEST, ARPOP_REPLY}) {
    arp.arp_op = htons(static_cast<std::uint16_t>(operation));
    if (operation == ARPOP_REPLY) std::memset(arp.arp_tha, 0xff, ETH_ALEN);
    if (::sendto(socket.get(), &arp, sizeof(arp), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) < 0)
      return not_announced(ip, link);
  }
  return Ok{};
}

/// An unsolicited neighbour advertisement to all nodes (RFC 4861, 7.2.6), which the kernel gives its checksum.
Status announce_v6(const Link& link, const Ip& ip) {
  const Fd socket(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6));
  if (!socket) return not_announced(ip, link);
  struct {
    nd_neighbor_advert advert;
    nd_opt_hdr option;
    std::uint8_t mac[ETH_ALEN];
  } message{};
  message.advert.nd_na_type = ND_NEIGHBOR_ADVERT;
  message.advert.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE | ND_NA_FLAG_ROUTER;
  std::memcpy(&message.advert.nd_na_target, ip.bytes.data(), ip.bytes.size());
  message.option = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1};
  std::memcpy(message.mac, link.mac.data(), ETH_ALEN);

  sockaddr_in6 from{};
  from.sin6_family = AF_INET6;
  std::memcpy(&from.sin6_addr, ip.bytes.data(), ip.bytes.size());
  sockaddr_in6 to{};
  to.sin6_family = AF_INET6;
  ::inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
  to.sin6_scope_id = static_cast<std::uint32_t>(link.ifindex);
  const int hops = 255;
  if (::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof(hops)) != 0 ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&from), sizeof(from)) != 0 ||
      ::sendto(socket.get(), &message, sizeof(message), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) < 0)
    return not_announced(ip, link);
  return Ok{};
}

}  // namespace

Status announce_addresses(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
  if (ifindex_of.empty()) return Ok{};
  // One for all of them: closing a packet socket waits for every CPU.
  const Fd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ARP)));
  if (!socket) return system_error("cannot open a packet socket", "AF_PACKET", errno);
  for (const auto& [ip, ifindex] : ifindex_of) {
    auto link = netlink.link(ifindex);
    if (!link) return link.error();
    if (!*link || !(*link)->up || (*link)->mac == Mac{}) continue;
    if (auto announced = ip.is_v4() ? announce_v4(socket, **link, ip) : announce_v6(**link, ip); !announced)
      return announced;
  }
  return Ok{};
}

}  // namespace egressclass
