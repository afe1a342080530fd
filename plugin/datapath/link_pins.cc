// SPDX-License-Identifier: Apache-2.0
#include "datapath/link_pins.h"

#include <algorithm>
#include <charconv>

#include "datapath/paths.h"
#include "util/file.h"

namespace egressclass {
namespace {

constexpr const char* kNextHop = "nexthop-";  // and the ifindex; those of pods are the ifindex alone

std::string path_of(const std::string& name) { return std::string(paths::kLinkPins) + "/" + name; }

}  // namespace

const char* const kTunnelInPin = "/sys/fs/bpf/egressclass/links/egress0-in";
const char* const kTunnelOutPin = "/sys/fs/bpf/egressclass/links/egress0-out";

std::string nexthop_pin(int ifindex) { return path_of(kNextHop + std::to_string(ifindex)); }

std::vector<std::string> nexthop_pins() {
  std::vector<std::string> pins;
  for (const std::string& name : names_in(paths::kLinkPins))
    if (name.starts_with(kNextHop)) pins.push_back(path_of(name));
  return pins;
}

std::string classifier_pin(int ifindex) { return path_of(std::to_string(ifindex)); }

std::vector<int> classifier_pins() {
  std::vector<int> ifindexes;
  for (const std::string& name : names_in(paths::kLinkPins)) {
    int ifindex = 0;
    const char* end = name.data() + name.size();
    if (const auto [stop, err] = std::from_chars(name.data(), end, ifindex); err == std::errc() && stop == end)
      ifindexes.push_back(ifindex);
  }
  std::ranges::sort(ifindexes);
  return ifindexes;
}

}  // namespace egressclass
