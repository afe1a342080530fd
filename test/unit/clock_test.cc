// SPDX-License-Identifier: Apache-2.0
#include "util/clock.h"

#include <gtest/gtest.h>

namespace egressclass {
namespace {

constexpr std::int64_t kNoon = 1'795'780'801 * kNsPerSecond;  // 2026-11-27T12:00:01Z

TEST(Clock, Formats) {
  EXPECT_EQ(format_time(kNoon), "2026-11-27T12:00:01.000000Z");
  EXPECT_EQ(format_time(kNoon + 250'999), "2026-11-27T12:00:01.000250Z");
  EXPECT_EQ(format_time(0), "1970-01-01T00:00:00.000000Z");
}

TEST(Clock, ParsesWhatItFormats) {
  for (const std::int64_t ns :
       {std::int64_t{0}, kNoon, kNoon + 999'999'000, std::int64_t{4'102'444'799} * kNsPerSecond})
    EXPECT_EQ(parse_time(format_time(ns), 0), ns);
}

TEST(Clock, ParsesWhatPeopleWrite) {
  const struct {
    const char* text;
    std::int64_t ns;
  } cases[] = {
      {"2026-11-27T12:00:01Z", kNoon},
      {"2026-11-27 12:00:01", kNoon},
      {"2026-11-27t12:00:01z", kNoon},
      {"2026-11-27T13:30:01+01:30", kNoon},
      {"2026-11-27T07:00:01-05:00", kNoon},
      {"12:00:01", kNoon},
      {"13:00:01+01:00", kNoon},
      {"2026-11-27T12:00:01.5Z", kNoon + kNsPerSecond / 2},
      {"2026-11-27T12:00:01.0000000019Z", kNoon + 1},
  };
  for (const auto& [text, ns] : cases) EXPECT_EQ(parse_time(text, kNoon + 3600 * kNsPerSecond), ns) << text;
}

TEST(Clock, RefusesWhatIsNoTime) {
  for (const char* text : {"", "noon", "12:00", "12:00:61", "24:00:00", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z",
                           "2026-11-27", "2026-11-27T12:00:01.Z", "2026-11-27T12:00:01+1", "2026-11-27T12:00:01 ",
                           "2026-11-27T-1:00:01Z", "99999-01-01T00:00:00Z", "12:00:01Zx", "12:00:01+25:00"})
    EXPECT_FALSE(parse_time(text, kNoon)) << text;
}

}  // namespace
}  // namespace egressclass
