// SPDX-License-Identifier: Apache-2.0
// Addresses and prefixes of both families in one type: IPv4 is kept as ::ffff:a.b.c.d, the form
// that the BPF maps use too. Parsing accepts one spelling of each family's standard text forms and no blanks.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace egressclass {

struct Ip {
  std::array<std::uint8_t, 16> bytes{};

  static std::optional<Ip> parse(std::string_view text);
  static Ip from_v4(std::uint32_t network_order);
  bool is_v4() const;
  bool is_link_local() const;  ///< 169.254.0.0/16, fe80::/10
  std::uint32_t v4() const;    ///< network byte order; only for is_v4()
  std::string str() const;
  auto operator<=>(const Ip&) const = default;
};

struct Prefix {
  Ip ip;
  unsigned length = 128;  ///< counted in the 128-bit form: an IPv4 /24 is 120

  static Prefix host(const Ip& ip) { return {ip, 128}; }
  /// "192.0.2.0/24", "2001:db8::/32"; a lone address is a host prefix only with `allow_host`.
  /// Host bits that are set, or a length out of range, are no prefix: `why` says so.
  static std::optional<Prefix> parse(std::string_view text, bool allow_host, std::string* why);
  bool contains(const Ip& other) const;
  bool contains(const Prefix& other) const;
  std::string str() const;  ///< with the family's own length
  auto operator<=>(const Prefix&) const = default;
};

}  // namespace egressclass
