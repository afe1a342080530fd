// SPDX-License-Identifier: Apache-2.0
// The egress IPs that this node holds. They are addresses in the gateway's namespace, and of no interface of the host:
// the host has a route to each that leads there, for what comes by other ways than uplink_in, and says on the link of
// each that it listens for those who ask for it.
#pragma once

#include <map>

#include "core/ip.h"
#include "core/plan.h"
#include "datapath/gateway_netns.h"
#include "datapath/netlink.h"
#include "datapath/programs.h"
#include "util/result.h"

namespace egressclass {

/// By the map `egress_ips`: those that are held, and the interfaces where they are answered for. Empty without maps.
std::map<Ip, int> held_egress_ips();

/// Of a plan.
std::map<Ip, int> egress_ips_of(const Plan& plan);

/// Holds those of the plan, and no others: from its return on they are answered for. Those that stay lose no packet.
Status hold_egress_ips(const Netlink& netlink, const GatewayNetns& gateway, const Programs& programs, const Plan& plan);

/// Holds none. When the map was lost, all of it but the listening for IPv6, which only the map knows of. With the
/// gateway's namespace the addresses go, and with ec0 the routes.
Status release_egress_ips(const Netlink& netlink);

}  // namespace egressclass
