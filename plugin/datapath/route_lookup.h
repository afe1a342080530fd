// SPDX-License-Identifier: Apache-2.0
// What the kernel would do with a packet of this node, by its rules and routes.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "core/ip.h"
#include "datapath/netlink.h"

namespace egressclass {

struct Route {
  int ifindex = 0;   ///< by which it leaves
  unsigned mtu = 0;  ///< that the route itself has; 0: none, the interface's counts
};

/// An address in a prefix that no router would refuse for what it is: of "everything", one of the Internet.
Ip sample_of(const Prefix& prefix);

class RouteLookup {
 public:
  static Result<RouteLookup> open();
  /// The way of a packet with that source: an address of this node, or any that came by the interface `came_by`. No
  /// value: there is none.
  Result<std::optional<Route>> find(const Ip& source, const Ip& to, int came_by = 0) const;
  /// The way that leads out by an interface, if there is one.
  Result<std::optional<Route>> find_by(int ifindex, const Ip& to) const;

 private:
  Result<std::optional<Route>> ask(const Ip* source, const Ip& to, int attribute, int ifindex) const;
  explicit RouteLookup(Netlink netlink) : netlink_(std::move(netlink)) {}
  Netlink netlink_;
};

}  // namespace egressclass
