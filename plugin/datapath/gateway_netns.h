// SPDX-License-Identifier: Apache-2.0
// The network namespace in which this node works as a gateway. Conntrack, NAT, routes and sysctls of classes are there,
// apart from everybody else's. It has a name, so that `ip netns exec egressclass` looks into it, and a pair of devices
// leads there: ec0 on the host, ec1 inside.
#pragma once

#include <string>
#include <vector>

#include "datapath/netlink.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

struct GatewayNetns {
  Fd netns;
  int ec0 = 0;  ///< ifindex on the host
  int ec1 = 0;  ///< ifindex inside
};

/// Empty: there is none.
Result<Fd> open_gateway_netns();

/// Makes the namespace, empty, unless it is there. That takes a mount, for which no unit's sandbox is open: there it is
/// done ahead of it.
Status make_gateway_netns();

/// Makes what is in it, and the devices; keeps what is right already, so that open flows live on. What goes to the
/// uplinks may have `mtu` bytes, and `tunnel_mtu` what goes back to the pods of other nodes. The timeouts of the host's
/// conntrack hold inside as well. `audited`: flows are counted and timed, and events are told of all.
Result<GatewayNetns> ensure_gateway_netns(const Netlink& netlink, unsigned mtu, unsigned tunnel_mtu, bool audited);

/// Ends it, with all that is inside. Absent already is success; so is a name that a sandbox may not unmount, once
/// nothing leads there.
Status remove_gateway_netns(const Netlink& netlink);

/// What is not as ensure_gateway_netns() leaves it, a line each.
std::vector<std::string> gateway_netns_faults(const Netlink& netlink);

}  // namespace egressclass
