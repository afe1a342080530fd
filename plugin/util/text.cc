// SPDX-License-Identifier: Apache-2.0
#include "util/text.h"

#include <net/if.h>

#include <algorithm>

namespace egressclass {

std::string printable(std::string_view text, std::size_t max) {
  constexpr std::string_view kCut = "...";
  const bool cut = text.size() > max;
  std::string shown(cut ? text.substr(0, max - std::min(max, kCut.size())) : text);
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  if (cut) shown += kCut;
  return shown;
}

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

std::string hex(std::uint32_t value) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string digits;
  for (; value != 0 || digits.empty(); value >>= 4U) digits.insert(digits.begin(), kDigits[value & 0xfU]);
  return "0x" + digits;
}

bool valid_ifname(std::string_view name) {
  constexpr std::string_view kForbidden("/: \t\n\v\f\r\0", 9);
  return !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
         name.find_first_of(kForbidden) == std::string_view::npos;
}

}  // namespace egressclass
