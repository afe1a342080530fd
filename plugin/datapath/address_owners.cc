// SPDX-License-Identifier: Apache-2.0
#include "datapath/address_owners.h"

#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/in.h>
#include <netinet/ip6.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "datapath/neighbour_messages.h"
#include "util/fd.h"

namespace egressclass {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kProbes = 3;
constexpr std::chrono::milliseconds kBetween{30};
constexpr std::chrono::milliseconds kInAll{100};

/// What it receives begins with the network header.
Result<Fd> open_packet_socket(std::uint16_t protocol) {
  Fd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(protocol)));
  if (!socket) return system_error("cannot open a packet socket", "AF_PACKET", errno);
  return socket;
}

/// Of all IPv6 packets only neighbour advertisements.
Status keep_advertisements(const Fd& socket) {
  constexpr auto kNextHeader = offsetof(ip6_hdr, ip6_nxt);
  std::array<sock_filter, 6> code = {{BPF_STMT(BPF_LD | BPF_B | BPF_ABS, kNextHeader),
                                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMPV6, 0, 3),
                                      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, sizeof(ip6_hdr)),
                                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ND_NEIGHBOR_ADVERT, 0, 1),
                                      BPF_STMT(BPF_RET | BPF_K, UINT32_MAX), BPF_STMT(BPF_RET | BPF_K, 0)}};
  const sock_fprog filter{code.size(), code.data()};
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) != 0)
    return system_error("cannot filter what a packet socket receives", "AF_PACKET", errno);
  return Ok{};
}

using Said = std::optional<std::pair<Ip, Mac>>;

/// Whatever it is about, who sends ARP from an address has it.
Said read_arp(std::span<const std::uint8_t> packet) {
  ether_arp arp{};
  if (packet.size() < sizeof(arp)) return {};
  std::memcpy(&arp, packet.data(), sizeof(arp));
  std::uint32_t address = 0;
  std::memcpy(&address, arp.arp_spa, sizeof(address));
  Mac mac;
  std::memcpy(mac.data(), arp.arp_sha, mac.size());
  return std::pair(Ip::from_v4(address), mac);
}

/// `sender`: of the frame. The message may say another (a proxy's, a virtual router's).
Said read_advertisement(std::span<const std::uint8_t> packet, const Mac& sender) {
  struct {
    ip6_hdr ip;
    nd_neighbor_advert advert;
    nd_opt_hdr option;
    Mac mac;
  } message{};
  constexpr std::size_t kLeast = sizeof(message.ip) + sizeof(message.advert);
  if (packet.size() < kLeast) return {};
  std::memcpy(&message, packet.data(), std::min(packet.size(), sizeof(message)));
  Ip ip;
  std::memcpy(ip.bytes.data(), &message.advert.nd_na_target, ip.bytes.size());
  const bool says = packet.size() >= sizeof(message) && message.option.nd_opt_type == ND_OPT_TARGET_LINKADDR;
  return std::pair(ip, says ? message.mac : sender);
}

class Search {
 public:
  static Result<Search> open(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
    auto messages = NeighbourMessages::open();
    if (!messages) return messages.error();
    Search search(std::move(*messages));
    for (const auto& [ip, ifindex] : ifindex_of) {
      if (search.links_.contains(ifindex)) continue;
      auto link = netlink.link(ifindex);
      if (!link) return link.error();
      search.links_.emplace(ifindex, link->value_or(Link{}));
    }
    for (const auto& [ip, ifindex] : ifindex_of)
      if (const Link& link = search.links_.at(ifindex); link.up && link.mac != Mac{}) search.asked_.emplace(ip, &link);
    auto arp = open_packet_socket(ETH_P_ARP);
    if (!arp) return arp.error();
    search.arp_ = std::move(*arp);
    auto ndp = open_packet_socket(ETH_P_IPV6);
    if (!ndp) return ndp.error();
    search.ndp_ = std::move(*ndp);
    if (auto kept = keep_advertisements(search.ndp_); !kept) return kept.error();
    return search;
  }

  Status ask() const {
    for (const auto& [ip, link] : asked_)
      if (auto sent = messages_.ask(*link, ip); !sent) return sent;
    return Ok{};
  }

  void listen(Clock::time_point until) {
    for (;;) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
      if (left <= 0) return;
      std::array<pollfd, 2> sockets = {{{arp_.get(), POLLIN, 0}, {ndp_.get(), POLLIN, 0}}};
      if (::poll(sockets.data(), sockets.size(), static_cast<int>(left)) <= 0) continue;
      if (sockets[0].revents != 0) receive(arp_, true);
      if (sockets[1].revents != 0) receive(ndp_, false);
    }
  }

  std::map<Ip, AddressOwner> take() { return std::move(owners_); }

 private:
  explicit Search(NeighbourMessages messages) : messages_(std::move(messages)) {}

  /// All that there is now.
  void receive(const Fd& socket, bool arp) {
    std::array<std::uint8_t, 256> bytes;
    sockaddr_ll from{};
    socklen_t size = sizeof(from);
    for (;;) {
      const auto got =
          ::recvfrom(socket.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (got < 0) return;
      const auto packet = std::span(bytes).first(static_cast<std::size_t>(got));
      Mac sender{};
      std::memcpy(sender.data(), from.sll_addr, sender.size());
      if (const Said said = arp ? read_arp(packet) : read_advertisement(packet, sender))
        note(said->first, said->second, from.sll_ifindex);
    }
  }

  void note(const Ip& ip, const Mac& mac, int ifindex) {
    const auto asked = asked_.find(ip);
    if (asked == asked_.end() || asked->second->ifindex != ifindex || mac == asked->second->mac) return;
    owners_[ip] = {mac, asked->second->name};
  }

  std::map<int, Link> links_;
  std::map<Ip, const Link*> asked_;  ///< the links are those above
  std::map<Ip, AddressOwner> owners_;
  NeighbourMessages messages_;
  Fd arp_;  ///< these receive
  Fd ndp_;
};

}  // namespace

Result<std::map<Ip, AddressOwner>> find_owners(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
  if (ifindex_of.empty()) return std::map<Ip, AddressOwner>();
  auto search = Search::open(netlink, ifindex_of);
  if (!search) return search.error();
  const auto began = Clock::now();
  for (int probe = 0; probe < kProbes; ++probe) {
    if (auto asked = search->ask(); !asked) return asked.error();
    search->listen(probe + 1 < kProbes ? began + (probe + 1) * kBetween : began + kInAll);
  }
  return search->take();
}

}  // namespace egressclass
