// SPDX-License-Identifier: Apache-2.0
#include "datapath/announce.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "util/fd.h"

namespace egressclass {

namespace {

Status announce(const Fd& socket, const Netlink& netlink, int ifindex, const Ip& ip) {
  auto link = netlink.link(ifindex);
  if (!link) return link.error();
  if (!*link || !(*link)->up || (*link)->mac == Mac{} || !ip.is_v4()) return Ok{};

  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = htons(ETH_P_ARP);
  to.sll_ifindex = ifindex;
  to.sll_halen = ETH_ALEN;
  std::memset(to.sll_addr, 0xff, ETH_ALEN);

  ether_arp arp{};
  arp.arp_hrd = htons(ARPHRD_ETHER);
  arp.arp_pro = htons(ETH_P_IP);
  arp.arp_hln = ETH_ALEN;
  arp.arp_pln = 4;
  const std::uint32_t address = ip.v4();
  std::memcpy(arp.arp_sha, (*link)->mac.data(), ETH_ALEN);
  std::memcpy(arp.arp_spa, &address, sizeof(address));
  std::memcpy(arp.arp_tpa, &address, sizeof(address));
  for (const int operation : {ARPOP_REQUEST, ARPOP_REPLY}) {
    arp.arp_op = htons(static_cast<std::uint16_t>(operation));
    if (operation == ARPOP_REPLY) std::memset(arp.arp_tha, 0xff, ETH_ALEN);
    if (::sendto(socket.get(), &arp, sizeof(arp), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) < 0)
      return system_error("cannot announce " + ip.str(), (*link)->name, errno);
  }
  return Ok{};
}

}  // namespace

Status announce_addresses(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
  if (ifindex_of.empty()) return Ok{};
  // One for all of them: closing a packet socket waits for every CPU.
  const Fd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ARP)));
  if (!socket) return system_error("cannot open a packet socket", "AF_PACKET", errno);
  for (const auto& [ip, ifindex] : ifindex_of)
    if (auto announced = announce(socket, netlink, ifindex, ip); !announced) return announced;
  return Ok{};
}

}  // namespace egressclass
