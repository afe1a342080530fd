// SPDX-License-Identifier: Apache-2.0
// What the kernel would do with a packet of this node, by its rules and routes.
#pragma once

#include <cstdint>
#include <utility>

#include "core/ip.h"
#include "datapath/netlink.h"

namespace egressclass {

class RouteLookup {
 public:
  static Result<RouteLookup> open();
  /// Whether it knows a way for a packet with that source, an address of this node, and that mark. True where it cannot
  /// be asked.
  bool has_route(const Ip& source, const Ip& to, std::uint32_t mark) const;

 private:
  explicit RouteLookup(Netlink netlink) : netlink_(std::move(netlink)) {}
  Netlink netlink_;
};

}  // namespace egressclass
