// SPDX-License-Identifier: Apache-2.0
// What an operator asks about: "ADDR[:PORT][/PROTO]".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/ip.h"

namespace egressclass {

struct Target {
  Ip address;
  std::optional<std::uint8_t> protocol;  ///< no value: any. IPPROTO_ICMP and IPPROTO_ICMPV6 by the address's family
  std::optional<std::uint16_t> port;

  /// "192.0.2.1", "192.0.2.1/icmp", "192.0.2.1:443" (TCP), "[2001:db8::1]:53/udp", "2001:db8::1/esp", ...
  /// On failure `why` says what is wrong with it.
  static std::optional<Target> parse(std::string_view text, std::string* why);

  bool has_ports() const;  ///< whether it is known that its packets have ports
  std::string str() const;
};

}  // namespace egressclass
