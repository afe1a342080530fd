// SPDX-License-Identifier: Apache-2.0
// Port rules: which protocols, and which of their ports, of a destination are steered.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace egressclass {

struct PortRule {
  std::uint8_t protocol = 0;  ///< IPPROTO_ICMP stands for ICMP and ICMPv6
  std::uint16_t first = 0;    ///< 0 to 65535: all ports, and protocols that have none
  std::uint16_t last = UINT16_MAX;

  /// "icmp", "tcp", "tcp/443", "udp/5000-5100", ... ("any" is no rule, but the absence of all).
  /// On failure `why` says what is wrong with it.
  static std::optional<PortRule> parse(std::string_view text, std::string* why);
  std::string str() const;
  auto operator<=>(const PortRule&) const = default;
};

/// The ports `first` to `last` as prefixes, as few as possible: (port, length of 0 to 16 bits).
std::vector<std::pair<std::uint16_t, unsigned>> port_prefixes(std::uint16_t first, std::uint16_t last);

}  // namespace egressclass
