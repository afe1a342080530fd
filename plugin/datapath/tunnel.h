// SPDX-License-Identifier: Apache-2.0
// egress0, the tunnel between nodes: a VXLAN device whose keys the BPF programs set and read, and the rules that lead
// packets there that nobody verified.
#pragma once

#include <cstdint>

#include "core/plan.h"
#include "datapath/netlink.h"
#include "datapath/programs.h"
#include "util/result.h"

namespace egressclass {

struct Tunnel {
  int ifindex = 0;
  unsigned mtu = 0;
};

/// The longest packet, in bytes, that fits into the tunnel, by the interfaces and routes to the other nodes as they are
/// now.
Result<unsigned> tunnel_mtu(const Netlink& netlink, const Plan& plan);

/// Makes device, programs on it, rule and route; keeps what is right already. A device of that name that is not
/// ours is an error.
Result<Tunnel> ensure_tunnel(const Netlink& netlink, const Plan& plan, const Programs& programs);

/// Removes all that. Absent already is success.
Status remove_tunnel(const Netlink& netlink, std::uint32_t mark_mask);

/// Whether the rules and the route are in place.
bool routes_exist(const Netlink& netlink, std::uint32_t mark_mask, const Tunnel& tunnel);

}  // namespace egressclass
