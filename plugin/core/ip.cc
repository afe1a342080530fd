// SPDX-License-Identifier: Apache-2.0
#include "core/ip.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace egressclass {
namespace {

constexpr unsigned kV4Offset = 96;  // bits ahead of an IPv4 address in the 128-bit form
constexpr std::array<std::uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

Ip masked(Ip ip, unsigned length) {
  for (unsigned i = 0; i < ip.bytes.size(); ++i) {
    const unsigned kept = std::clamp(length, 8 * i, 8 * i + 8) - 8 * i;
    ip.bytes[i] = static_cast<std::uint8_t>(ip.bytes[i] & (0xff00U >> kept));
  }
  return ip;
}

// Only digits and no leading zero, so that one length has one spelling.
std::optional<unsigned> parse_length(std::string_view text) {
  unsigned length = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
  if (error != std::errc() || end != text.data() + text.size() || (text.size() > 1 && text[0] == '0')) return {};
  return length;
}

}  // namespace

std::optional<Ip> Ip::parse(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return {};  // inet_pton would read only what is ahead of it
  const std::string terminated(text);
  if (in_addr v4{}; ::inet_pton(AF_INET, terminated.c_str(), &v4) == 1) return from_v4(v4.s_addr);
  Ip ip;
  if (::inet_pton(AF_INET6, terminated.c_str(), ip.bytes.data()) != 1) return {};
  if (ip.is_v4()) return {};  // "::ffff:192.0.2.1" would be a second spelling of an IPv4 address
  return ip;
}

Ip Ip::from_v4(std::uint32_t network_order) {
  Ip ip;
  std::copy(kMapped.begin(), kMapped.end(), ip.bytes.begin());
  std::memcpy(ip.bytes.data() + kMapped.size(), &network_order, sizeof network_order);
  return ip;
}

bool Ip::is_v4() const { return std::equal(kMapped.begin(), kMapped.end(), bytes.begin()); }

bool Ip::is_link_local() const {
  if (is_v4()) return bytes[12] == 169 && bytes[13] == 254;
  return bytes[0] == 0xfe && (bytes[1] & 0xc0U) == 0x80;
}

std::uint32_t Ip::v4() const {
  std::uint32_t network_order = 0;
  std::memcpy(&network_order, bytes.data() + kMapped.size(), sizeof network_order);
  return network_order;
}

std::string Ip::str() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (is_v4())
    ::inet_ntop(AF_INET, bytes.data() + kMapped.size(), text.data(), text.size());
  else
    ::inet_ntop(AF_INET6, bytes.data(), text.data(), text.size());
  return text.data();
}

std::optional<Prefix> Prefix::parse(std::string_view text, bool allow_host, std::string* why) {
  const auto refuse = [why](std::string reason) {
    *why = std::move(reason);
    return std::nullopt;
  };
  const std::size_t slash = text.find('/');
  const std::optional<Ip> ip = Ip::parse(text.substr(0, slash));
  if (!ip) return refuse("no IP prefix");
  const unsigned offset = ip->is_v4() ? kV4Offset : 0;
  if (slash == std::string_view::npos) {
    if (allow_host) return host(*ip);
    return refuse("no prefix length: write " + host(*ip).str() + " for this one address");
  }
  const std::optional<unsigned> length = parse_length(text.substr(slash + 1));
  if (!length || *length > 128 - offset)
    return refuse("the prefix length is no number from 0 to " + std::to_string(128 - offset));
  const Prefix prefix{masked(*ip, offset + *length), offset + *length};
  if (prefix.ip != *ip) return refuse("host bits are set: write " + prefix.str());
  return prefix;
}

bool Prefix::contains(const Ip& other) const { return contains(host(other)); }

bool Prefix::contains(const Prefix& other) const {
  // The families stay apart: in the 128-bit form alone, ::/0 would contain all of IPv4.
  return ip.is_v4() == other.ip.is_v4() && length <= other.length && masked(other.ip, length) == ip;
}

std::string Prefix::str() const { return ip.str() + '/' + std::to_string(ip.is_v4() ? length - kV4Offset : length); }

}  // namespace egressclass
