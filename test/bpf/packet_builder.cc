// SPDX-License-Identifier: Apache-2.0
#include "packet_builder.h"

#include <netinet/in.h>

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <stdexcept>

namespace egressclass {
namespace {

constexpr std::uint16_t kEtherIpv4 = 0x0800;
constexpr std::uint16_t kEtherArp = 0x0806;
constexpr std::uint16_t kEtherVlan = 0x8100;
constexpr std::uint16_t kEtherIpv6 = 0x86dd;
constexpr std::uint16_t kMoreFragments = 0x2000;
constexpr std::uint16_t kDontFragment = 0x4000;
constexpr std::size_t kEthernetBytes = 14;

Ip parse_ip(const char* text) {
  const auto ip = Ip::parse(text);
  if (!ip) throw std::invalid_argument(std::string("not an address: ") + text);
  return *ip;
}

template <class Range>
void append(Bytes& to, const Range& bytes) {
  to.insert(to.end(), std::begin(bytes), std::end(bytes));
}

void append16(Bytes& to, std::size_t value) {
  to.push_back(static_cast<std::uint8_t>(value >> 8U));
  to.push_back(static_cast<std::uint8_t>(value));
}

void append32(Bytes& to, std::uint32_t value) {
  append16(to, value >> 16U);
  append16(to, value & 0xffffU);
}

void append_ip(Bytes& to, const Ip& ip) {
  to.insert(to.end(), ip.bytes.begin() + (ip.is_v4() ? 12 : 0), ip.bytes.end());
}

std::uint16_t read16(const Bytes& bytes, std::size_t at) {
  return static_cast<std::uint16_t>(bytes.at(at) << 8U | bytes.at(at + 1));
}

std::uint16_t checksum(const Bytes& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) sum += i % 2 == 0 ? bytes[i] * 256U : bytes[i];
  while (sum > 0xffff) sum = (sum & 0xffffU) + (sum >> 16U);
  return static_cast<std::uint16_t>(~sum);
}

void store16(Bytes& to, std::size_t at, std::uint16_t value) {
  to.at(at) = static_cast<std::uint8_t>(value >> 8U);
  to.at(at + 1) = static_cast<std::uint8_t>(value);
}

}  // namespace

Packet& Packet::from(const Mac& mac) {
  from_ = mac;
  return *this;
}

Packet& Packet::to(const Mac& mac) {
  to_ = mac;
  return *this;
}

Packet& Packet::vlan(std::uint16_t id) {
  vlan_ = id;
  return *this;
}

Packet& Packet::ether_type(std::uint16_t type) {
  ether_type_ = type;
  return *this;
}

Packet& Packet::arp(const char* sender, const char* target) {
  ip(sender, target);
  ip_ = false;
  arp_ = true;
  return *this;
}

Packet& Packet::arp_reply(const char* sender, const char* target) {
  arp_reply_ = true;
  return arp(sender, target);
}

Packet& Packet::ip(const char* src, const char* dst) {
  ip_ = true;
  src_ = parse_ip(src);
  dst_ = parse_ip(dst);
  return *this;
}

Packet& Packet::ip_version(std::uint8_t version) {
  version_ = version;
  return *this;
}

Packet& Packet::ip_header_words(std::uint8_t words) {
  header_words_ = words;
  return *this;
}

Packet& Packet::ttl(std::uint8_t hops) {
  ttl_ = hops;
  return *this;
}

Packet& Packet::dont_fragment() {
  dont_fragment_ = true;
  return *this;
}

Packet& Packet::extension(std::uint8_t type, std::size_t size) {
  extensions_.push_back({type, size});
  return *this;
}

Packet& Packet::fragment(std::uint16_t id, unsigned offset, bool more) {
  extension(IPPROTO_FRAGMENT);
  fragment_id_ = id;
  fragment_ = static_cast<std::uint16_t>(offset / 8 | (more ? kMoreFragments : 0U));
  return *this;
}

Packet& Packet::protocol(std::uint8_t number) {
  protocol_ = number;
  return *this;
}

Packet& Packet::tcp(std::uint16_t sport, std::uint16_t dport, std::uint8_t flags) {
  udp(sport, dport);
  transport_ = Transport::kTcp;
  tcp_flags_ = flags;
  return *this;
}

Packet& Packet::udp(std::uint16_t sport, std::uint16_t dport) {
  transport_ = Transport::kUdp;
  sport_ = sport;
  dport_ = dport;
  return *this;
}

Packet& Packet::icmp(std::uint8_t type, std::uint8_t code) {
  transport_ = Transport::kIcmp;
  icmp_type_ = type;
  icmp_code_ = code;
  return *this;
}

Packet& Packet::icmp_word(std::uint32_t word) {
  icmp_word_ = word;
  return *this;
}

Packet& Packet::translated(const char* src, std::uint16_t port) {
  src_ = parse_ip(src);
  if (transport_ == Transport::kIcmp)
    icmp_word_ = static_cast<std::uint32_t>(port) << 16U | (icmp_word_ & 0xffffU);
  else
    sport_ = port;
  return *this;
}

Packet& Packet::about(const Packet& packet) {
  const Bytes whole = packet.bytes();
  return payload(Bytes(whole.begin() + kEthernetBytes, whole.end()));
}

Packet& Packet::payload(Bytes bytes) {
  payload_ = std::move(bytes);
  return *this;
}

Packet& Packet::payload(std::size_t size) {
  payload_.resize(size);
  for (std::size_t i = 0; i < size; ++i) payload_[i] = static_cast<std::uint8_t>(i);
  return *this;
}

Packet& Packet::cut(std::size_t size) {
  cut_ = size;
  return *this;
}

std::uint8_t Packet::next_header() const {
  switch (transport_) {
    case Transport::kTcp:
      return IPPROTO_TCP;
    case Transport::kUdp:
      return IPPROTO_UDP;
    case Transport::kIcmp:
      return static_cast<std::uint8_t>(is_v4() ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
    case Transport::kNone:
      break;
  }
  return protocol_;
}

Bytes Packet::transport() const {
  Bytes out;
  std::size_t checksum_at = 0;
  switch (transport_) {
    case Transport::kNone:
      return payload_;
    case Transport::kTcp:
      append16(out, sport_);
      append16(out, dport_);
      append32(out, 1000);  // sequence
      append32(out, 2000);  // acknowledgement
      append16(out, 5U << 12U | tcp_flags_);
      append16(out, 0xffff);  // window
      append32(out, 0);       // checksum, urgent pointer
      checksum_at = 16;
      break;
    case Transport::kUdp:
      append16(out, sport_);
      append16(out, dport_);
      append16(out, 8 + payload_.size());
      append16(out, 0);
      checksum_at = 6;
      break;
    case Transport::kIcmp:
      out = {icmp_type_, icmp_code_};
      append16(out, 0);
      append32(out, icmp_word_);
      checksum_at = 2;
      break;
  }
  append(out, payload_);
  Bytes covered;
  if (transport_ != Transport::kIcmp || !is_v4()) {
    append_ip(covered, src_);
    append_ip(covered, dst_);
    append32(covered, static_cast<std::uint32_t>(out.size()));
    append32(covered, next_header());
  }
  append(covered, out);
  store16(out, checksum_at, checksum(covered));
  return out;
}

Bytes Packet::extensions() const {
  Bytes out;
  for (std::size_t i = 0; i < extensions_.size(); ++i) {
    const Extension& extension = extensions_[i];
    out.push_back(i + 1 < extensions_.size() ? extensions_[i + 1].type : next_header());
    if (extension.type == IPPROTO_FRAGMENT) {
      out.push_back(0);
      append16(out, (fragment_ & ~kMoreFragments) * 8U | (fragment_ & kMoreFragments ? 1U : 0U));
      append32(out, fragment_id_);
      continue;
    }
    out.push_back(static_cast<std::uint8_t>(extension.size / 8 - 1));
    append(out, Bytes{1, static_cast<std::uint8_t>(extension.size - 4)});  // padding, option PadN
    out.resize(out.size() + extension.size - 4);
  }
  return out;
}

Bytes Packet::network(const Bytes& content) const {
  Bytes out;
  if (is_v4()) {
    const std::size_t options = header_words_ > 5 ? (header_words_ - 5U) * 4 : 0;
    out = {static_cast<std::uint8_t>(version_.value_or(4) << 4U | header_words_), 0};
    append16(out, 20 + options + content.size());
    append16(out, fragment_id_);
    append16(out, fragment_ | (dont_fragment_ ? kDontFragment : 0U));
    out.push_back(ttl_);
    out.push_back(next_header());
    append16(out, 0);
    append_ip(out, src_);
    append_ip(out, dst_);
    out.resize(out.size() + options, 1);  // "no operation"
    store16(out, 10, checksum(out));
  } else {
    const Bytes headers = extensions();
    append32(out, static_cast<std::uint32_t>(version_.value_or(6)) << 28U);
    append16(out, headers.size() + content.size());
    out.push_back(extensions_.empty() ? next_header() : extensions_.front().type);
    out.push_back(ttl_);
    append_ip(out, src_);
    append_ip(out, dst_);
    append(out, headers);
  }
  append(out, content);
  return out;
}

Bytes Packet::bytes() const {
  Bytes out;
  append(out, to_);
  append(out, from_);
  if (vlan_) {
    append16(out, kEtherVlan);
    append16(out, *vlan_);
  }
  const std::uint16_t type = arp_ ? kEtherArp : is_v4() ? kEtherIpv4 : kEtherIpv6;
  append16(out, ether_type_.value_or(type));
  if (arp_) {
    append32(out, 0x00010800);                            // Ethernet, IPv4
    append32(out, arp_reply_ ? 0x06040002 : 0x06040001);  // lengths, operation
    append(out, from_);
    append_ip(out, src_);
    append(out, arp_reply_ ? to_ : Mac{});
    append_ip(out, dst_);
  }
  append(out, ip_ ? network(transport()) : payload_);
  if (cut_) out.resize(*cut_);
  return out;
}

Bytes vxlan(std::uint32_t vni, const Bytes& inner) {
  Bytes out;
  append32(out, 0x08000000);  // "the VNI is valid"
  append32(out, vni << 8U);
  append(out, inner);
  return out;
}

std::optional<Tunneled> open_vxlan(const Bytes& frame) {
  constexpr std::size_t kIpAt = kEthernetBytes;
  constexpr std::size_t kVxlanBytes = 8 + 8;  // with the UDP header
  if (frame.size() < kIpAt + 40 + kVxlanBytes) return std::nullopt;
  const bool v4 = read16(frame, 12) == kEtherIpv4;
  if (!v4 && read16(frame, 12) != kEtherIpv6) return std::nullopt;
  const std::size_t udp_at = kIpAt + (v4 ? 20 : 40);
  if (frame[kIpAt] >> 4U != (v4 ? 4 : 6) || frame[kIpAt + (v4 ? 9 : 6)] != IPPROTO_UDP || frame[udp_at + 8] != 0x08)
    return std::nullopt;
  const std::size_t address_bytes = v4 ? 4 : 16;
  const auto address = [&](std::size_t at) {
    Ip ip = parse_ip(v4 ? "0.0.0.0" : "::");
    std::copy_n(frame.begin() + static_cast<std::ptrdiff_t>(at), address_bytes,
                ip.bytes.end() - static_cast<std::ptrdiff_t>(address_bytes));
    return ip.str();
  };
  return Tunneled{.src = address(udp_at - 2 * address_bytes),
                  .dst = address(udp_at - address_bytes),
                  .port = read16(frame, udp_at + 2),
                  .checksum = read16(frame, udp_at + 6),
                  .vni = static_cast<std::uint32_t>(read16(frame, udp_at + 12) << 8U | frame[udp_at + 14]),
                  .inner = Bytes(frame.begin() + static_cast<std::ptrdiff_t>(udp_at + kVxlanBytes), frame.end())};
}

std::string hex_dump(const Bytes& bytes) {
  std::ostringstream out;
  out << std::hex << std::setfill('0');
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i % 16 == 0) out << '\n' << std::setw(4) << i << ' ';
    out << ' ' << std::setw(2) << unsigned{bytes[i]};
  }
  out << '\n';
  return out.str();
}

std::ostream& operator<<(std::ostream& out, const Packet& packet) { return out << hex_dump(packet.bytes()); }

}  // namespace egressclass
