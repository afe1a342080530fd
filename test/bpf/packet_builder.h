// SPDX-License-Identifier: Apache-2.0
// Packets for tests, written as one reads them:
//
//   Packet().from(pod_mac).to(host_mac).ip("10.244.1.5", "198.51.100.7").tcp(40000, 443, kSyn).payload(100)
//
// The family follows from the addresses. Lengths and checksums are right for what is there; a fragment's transport
// checksum covers that fragment alone.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "core/ip.h"
#include "core/mac.h"

namespace egressclass {

using Bytes = std::vector<std::uint8_t>;

inline constexpr std::uint8_t kFin = 0x01;
inline constexpr std::uint8_t kSyn = 0x02;
inline constexpr std::uint8_t kRst = 0x04;
inline constexpr std::uint8_t kAck = 0x10;

class Packet {
 public:
  Packet& from(const Mac& mac);
  Packet& to(const Mac& mac);
  Packet& vlan(std::uint16_t id);
  Packet& ether_type(std::uint16_t type);  ///< also of what would have another one
  Packet& arp(const char* sender, const char* target);
  Packet& arp_reply(const char* sender, const char* target);  ///< to the MAC address that the frame is for
  Packet& ip(const char* src, const char* dst);
  Packet& ip_version(std::uint8_t version);
  Packet& ip_header_words(std::uint8_t words);  ///< IPv4: more than 5 makes options, less a broken header
  Packet& ttl(std::uint8_t hops);
  Packet& dont_fragment();  ///< IPv4
  /// IPv6: in a fragment header, behind the extension headers named before it.
  Packet& fragment(std::uint16_t id, unsigned offset, bool more);
  Packet& extension(std::uint8_t type, std::size_t size = 8);  ///< IPv6: of so many bytes, a multiple of 8
  Packet& protocol(std::uint8_t number);                       ///< of what has no transport header here
  Packet& tcp(std::uint16_t sport, std::uint16_t dport, std::uint8_t flags = kAck);
  Packet& udp(std::uint16_t sport, std::uint16_t dport);
  Packet& icmp(std::uint8_t type, std::uint8_t code = 0);  ///< ICMPv6 between IPv6 addresses
  Packet& icmp_word(std::uint32_t word);                   ///< what is behind the checksum; else that of an echo
  /// From another address and port; of an echo, with another identifier.
  Packet& translated(const char* src, std::uint16_t port);
  Packet& about(const Packet& packet);  ///< an ICMP error's payload: that packet without Ethernet
  Packet& payload(Bytes bytes);
  Packet& payload(std::size_t size);  ///< so many bytes of a pattern
  Packet& cut(std::size_t size);      ///< only the first bytes of all that

  Bytes bytes() const;

 private:
  enum class Transport { kNone, kTcp, kUdp, kIcmp };

  bool is_v4() const { return src_.is_v4(); }
  std::uint8_t next_header() const;
  Bytes transport() const;
  Bytes network(const Bytes& content) const;
  Bytes extensions() const;

  Mac from_{};
  Mac to_{};
  std::optional<std::uint16_t> vlan_;
  std::optional<std::uint16_t> ether_type_;
  bool arp_ = false;
  bool arp_reply_ = false;
  bool ip_ = false;
  Ip src_;
  Ip dst_;
  std::optional<std::uint8_t> version_;
  std::uint8_t header_words_ = 5;
  std::uint16_t fragment_id_ = 0x1234;
  std::uint16_t fragment_ = 0;  // flags and offset
  bool dont_fragment_ = false;
  std::uint8_t ttl_ = 64;
  struct Extension {
    std::uint8_t type;
    std::size_t size;
  };
  std::vector<Extension> extensions_;
  std::uint8_t protocol_ = 253;
  Transport transport_ = Transport::kNone;
  std::uint16_t sport_ = 0;
  std::uint16_t dport_ = 0;
  std::uint8_t tcp_flags_ = 0;
  std::uint8_t icmp_type_ = 0;
  std::uint8_t icmp_code_ = 0;
  std::uint32_t icmp_word_ = 0x00420001;  // an echo's identifier and sequence number
  Bytes payload_;
  std::optional<std::size_t> cut_;
};

/// What a VXLAN packet carries, and how.
struct Tunneled {
  std::string src;  ///< of the outer packet
  std::string dst;
  std::uint16_t port = 0;
  std::uint16_t checksum = 0;  ///< of the outer UDP header
  std::uint32_t vni = 0;
  Bytes inner;
};

/// Nothing, if the frame is no VXLAN.
std::optional<Tunneled> open_vxlan(const Bytes& frame);
/// The payload of a VXLAN packet.
Bytes vxlan(std::uint32_t vni, const Bytes& inner);

/// In the form that text2pcap reads.
std::string hex_dump(const Bytes& bytes);
std::ostream& operator<<(std::ostream& out, const Packet& packet);

}  // namespace egressclass
