// SPDX-License-Identifier: Apache-2.0
#include "datapath/announce.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "datapath/netlink.h"
#include "util/all_errors.h"
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
Status announce_v6(const Fd& socket, const Link& link, const Ip& ip) {
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

  sockaddr_in6 to{};
  to.sin6_family = AF_INET6;
  ::inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
  in6_pktinfo from{};
  from.ipi6_ifindex = static_cast<unsigned>(link.ifindex);
  std::memcpy(&from.ipi6_addr, ip.bytes.data(), ip.bytes.size());
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(from))> control{};
  iovec data{&message, sizeof(message)};
  msghdr header{&to, sizeof(to), &data, 1, control.data(), control.size(), 0};
  cmsghdr* info = CMSG_FIRSTHDR(&header);
  info->cmsg_level = IPPROTO_IPV6;
  info->cmsg_type = IPV6_PKTINFO;
  info->cmsg_len = CMSG_LEN(sizeof(from));
  std::memcpy(CMSG_DATA(info), &from, sizeof(from));
  if (::sendmsg(socket.get(), &header, 0) < 0) return not_announced(ip, link);
  return Ok{};
}

Result<Fd> open_v6() {
  Fd socket(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6));
  const int hops = 255;
  const int no_loop = 0;  // this node would search all of its groups for each
  icmp6_filter none{};    // it receives nothing
  ICMP6_FILTER_SETBLOCKALL(&none);
  if (!socket || ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof(hops)) != 0 ||
      ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_MULTICAST_LOOP, &no_loop, sizeof(no_loop)) != 0 ||
      ::setsockopt(socket.get(), IPPROTO_ICMPV6, ICMP6_FILTER, &none, sizeof(none)) != 0)
    return system_error("cannot open a raw socket", "ICMPv6", errno);
  return socket;
}

/// Egress IPs of this node, and the interfaces on which they are.
std::map<Ip, int> egress_ips_of(const Plan& plan) {
  std::map<Ip, int> ifindex_of;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) ifindex_of[slot.ip] = slot.ifindex;
  return ifindex_of;
}

Status announce(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
  if (ifindex_of.empty()) return Ok{};
  // One of each for all of them: closing a packet socket waits for every CPU.
  const Fd arp(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0));  // 0: it receives nothing
  if (!arp) return system_error("cannot open a packet socket", "AF_PACKET", errno);
  Fd icmp6;
  std::map<int, std::optional<Link>> links;
  AllErrors errors;
  for (const auto& [ip, ifindex] : ifindex_of) {
    if (!links.contains(ifindex)) {
      auto link = netlink.link(ifindex);
      errors.add(link);
      links[ifindex] = link ? std::move(*link) : std::nullopt;
    }
    const std::optional<Link>& link = links[ifindex];
    if (!link || !link->up || link->mac == Mac{}) continue;
    if (!ip.is_v4() && !icmp6) {
      auto opened = open_v6();
      if (!opened) return opened.error();
      icmp6 = std::move(*opened);
    }
    errors.add(ip.is_v4() ? announce_v4(arp, *link, ip) : announce_v6(icmp6, *link, ip));
  }
  return errors.status();
}

/// The life of the process that repeats.
void repeat(std::map<Ip, int> ifindex_of) {
  for (const int seconds : {1, 2}) {
    ::sleep(static_cast<unsigned>(seconds));
    auto netlink = Netlink::open();
    auto present = netlink ? netlink->addresses() : Result<std::vector<InterfaceAddress>>(netlink.error());
    if (!present) return;
    std::set<std::pair<Ip, int>> here;
    for (const InterfaceAddress& address : *present) here.emplace(address.ip, address.ifindex);
    std::erase_if(ifindex_of, [&](const auto& one) { return !here.contains({one.first, one.second}); });
    if (!announce(*netlink, ifindex_of)) return;
  }
}

}  // namespace

Status announce_egress_ips(const Plan& plan) {
  const auto ifindex_of = egress_ips_of(plan);
  if (ifindex_of.empty()) return Ok{};
  auto netlink = Netlink::open();
  return netlink ? announce(*netlink, ifindex_of) : Status(netlink.error());
}

void announce_again(const Plan& plan) {
  const auto ifindex_of = egress_ips_of(plan);
  if (ifindex_of.empty() || ::fork() != 0) return;
  // Nobody waits for this process: not for its output, and not for the lock, which goes with the descriptor.
  ::setsid();
  const Fd nowhere(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(nowhere.get(), fd);
  ::close_range(STDERR_FILENO + 1, ~0U, 0);
  repeat(ifindex_of);
  ::_exit(0);
}

}  // namespace egressclass
