// SPDX-License-Identifier: Apache-2.0
// Ethernet addresses.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace egressclass {

using Mac = std::array<std::uint8_t, 6>;

std::string mac_text(const Mac& mac);
std::optional<Mac> parse_mac(const std::string& text);

}  // namespace egressclass
