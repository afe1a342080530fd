// SPDX-License-Identifier: Apache-2.0
// Small helpers for texts that somebody else wrote and that a message or a name is made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace egressclass {

/// For a message: printable ASCII, every other byte as '?', and not longer than `max` ("..." marks a cut).
std::string printable(std::string_view text, std::size_t max = 80);

/// printable() between double quotes.
std::string in_quotes(std::string_view text);

/// "0x1f7f", the form of marks in nft, ip and tc.
std::string hex(std::uint32_t value);

/// What the kernel accepts as the name of an interface, and CNI as CNI_IFNAME.
bool valid_ifname(std::string_view name);

}  // namespace egressclass
