// SPDX-License-Identifier: Apache-2.0
#include "util/clock.h"

#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <ctime>

namespace egressclass {
namespace {

constexpr std::int64_t kSecondsPerDay = 86'400;

/// Takes from the front of a text, piece by piece.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  bool at_end() const { return rest_.empty(); }

  bool take(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::optional<int> digits(std::size_t count, int lowest, int highest) {
    if (rest_.size() < count) return {};
    int value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + count, value);
    if (error != std::errc() || end != rest_.data() + count || rest_[0] == '-' || value < lowest || value > highest)
      return {};
    rest_.remove_prefix(count);
    return value;
  }

  /// Behind a decimal point: nanoseconds; what is finer is cut off.
  std::optional<std::int64_t> fraction() {
    std::int64_t ns = 0;
    std::int64_t unit = kNsPerSecond / 10;
    std::size_t length = 0;
    for (; length < rest_.size() && rest_[length] >= '0' && rest_[length] <= '9'; ++length, unit /= 10)
      ns += unit * (rest_[length] - '0');
    rest_.remove_prefix(length);
    return length == 0 ? std::nullopt : std::optional(ns);
  }

  bool is_date() const { return rest_.size() > 4 && rest_[4] == '-'; }

 private:
  std::string_view rest_;
};

std::optional<std::int64_t> date_seconds(Scanner& scan) {
  const auto year = scan.digits(4, 1970, 2200);
  if (!year || !scan.take('-')) return {};
  const auto month = scan.digits(2, 1, 12);
  if (!month || !scan.take('-')) return {};
  const auto day = scan.digits(2, 1, 31);
  if (!day || !(scan.take('T') || scan.take(' ') || scan.take('t'))) return {};
  const std::chrono::year_month_day date{std::chrono::year(*year), std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(*day))};
  if (!date.ok()) return {};
  return std::chrono::sys_days(date).time_since_epoch().count() * kSecondsPerDay;
}

/// How far local time is ahead of UTC, in seconds.
std::optional<std::int64_t> zone_seconds(Scanner& scan) {
  if (scan.at_end() || scan.take('Z') || scan.take('z')) return 0;
  const bool ahead = scan.take('+');
  if (!ahead && !scan.take('-')) return {};
  const auto hours = scan.digits(2, 0, 23);
  if (!hours || !scan.take(':')) return {};
  const auto minutes = scan.digits(2, 0, 59);
  if (!minutes) return {};
  return (ahead ? 1 : -1) * (*hours * 3600 + *minutes * 60);
}

}  // namespace

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::int64_t>(now.tv_sec) * kNsPerSecond + now.tv_nsec;
}

std::string format_time(std::int64_t ns) {
  const std::time_t seconds = ns / kNsPerSecond;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  std::array<char, 48> text{};
  const int length =
      std::snprintf(text.data(), text.size(), "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ", utc.tm_year + 1900, utc.tm_mon + 1,
                    utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, static_cast<int>(ns % kNsPerSecond / 1000));
  return {text.data(), static_cast<std::size_t>(length)};
}

std::optional<std::int64_t> parse_time(std::string_view text, std::int64_t now) {
  Scanner scan(text);
  std::int64_t seconds = now / kNsPerSecond / kSecondsPerDay * kSecondsPerDay;
  if (scan.is_date()) {
    const auto date = date_seconds(scan);
    if (!date) return {};
    seconds = *date;
  }
  const auto hour = scan.digits(2, 0, 23);
  if (!hour || !scan.take(':')) return {};
  const auto minute = scan.digits(2, 0, 59);
  if (!minute || !scan.take(':')) return {};
  const auto second = scan.digits(2, 0, 60);
  if (!second) return {};
  std::int64_t ns = 0;
  if (scan.take('.')) {
    const auto fraction = scan.fraction();
    if (!fraction) return {};
    ns = *fraction;
  }
  const auto zone = zone_seconds(scan);
  if (!zone || !scan.at_end()) return {};
  return (seconds + *hour * 3600L + *minute * 60L + *second - *zone) * kNsPerSecond + ns;
}

}  // namespace egressclass
