// SPDX-License-Identifier: Apache-2.0
#include "core/mac.h"

#include <cstdio>

namespace egressclass {

std::string mac_text(const Mac& mac) {
  std::array<char, 18> text{};
  std::snprintf(text.data(), text.size(), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                mac[5]);
  return text.data();
}

std::optional<Mac> parse_mac(const std::string& text) {
  Mac mac{};
  char rest = 0;
  if (std::sscanf(text.c_str(), "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
                  &mac[5], &rest) != 6)
    return std::nullopt;
  return mac;
}

}  // namespace egressclass
