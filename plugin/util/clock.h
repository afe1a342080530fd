// SPDX-License-Identifier: Apache-2.0
// Points in time: nanoseconds since 1970 in UTC, and the texts for them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace egressclass {

inline constexpr std::int64_t kNsPerSecond = 1'000'000'000;

/// CLOCK_REALTIME.
std::int64_t now_ns();

/// "2026-11-27T12:00:01.000250Z": to a microsecond.
std::string format_time(std::int64_t ns);

/// RFC 3339 with any number of decimals, "T" or a blank between date and time. Without a zone it is UTC, without a date
/// the day of `now`, as is a lone "12:00:01".
std::optional<std::int64_t> parse_time(std::string_view text, std::int64_t now);

}  // namespace egressclass
