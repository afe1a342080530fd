// SPDX-License-Identifier: Apache-2.0
// What `egressctl who` looks for in a file of records: for each flow's record, the address and port that the flow had
// outside, since when, until when, and where in the file the record is. An index is an array of entries, sorted by
// endpoint, then start.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/ip.h"

namespace egressclass::audit {

/// In the byte order of the machine: files stay on the machine that wrote them.
struct Entry {
  std::uint64_t endpoint;  ///< endpoint_hash()
  std::uint64_t flow;
  std::uint32_t start;   ///< of the flow, in seconds since 1970
  std::uint32_t time;    ///< of the record
  std::uint32_t offset;  ///< of the compressed member that holds the record
  std::uint32_t open;    ///< 1: of a flow's start, or of one that was found open; 0: of its end
  auto operator<=>(const Entry&) const = default;
};
static_assert(sizeof(Entry) == 32);

/// Where the starts of egressd are found: at those, every flow still open is recorded anew.
inline constexpr std::uint64_t kAgentEndpoint = 0;

/// Of an egress IP, a port and a protocol; never kAgentEndpoint.
std::uint64_t endpoint_hash(const Ip& ip, std::uint16_t port, std::uint8_t protocol);

/// The entry for one line, but for its offset. No value: nobody will look for it. Reads the text as record.h writes it,
/// without parsing JSON: an escaped text of somebody else's never looks like a key, for the quotes in it are escaped.
std::optional<Entry> entry_of(std::string_view line);

}  // namespace egressclass::audit
