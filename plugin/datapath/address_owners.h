// SPDX-License-Identifier: Apache-2.0
// Whether another machine on a link has an address that is to come to this node.
#pragma once

#include <map>
#include <string>

#include "core/ip.h"
#include "core/mac.h"
#include "datapath/netlink.h"
#include "util/result.h"

namespace egressclass {

struct AddressOwner {
  Mac mac{};
  std::string interface;  ///< of this node, on which it answers
};

/// Asks for each address on its interface (address -> ifindex), by ARP probes (RFC 5227, 2.1) and by the solicitations
/// of duplicate address detection (RFC 4862, 5.4), which no neighbour takes for news. Takes 100 ms, however many they
/// are: the standards' seconds are for a host that joins a network; here the link is in use, and who is there answers
/// at once. None of them may be an address of this node yet. Interfaces that are down, or have no MAC address, are
/// passed over.
Result<std::map<Ip, AddressOwner>> find_owners(const Netlink& netlink, const std::map<Ip, int>& ifindex_of);

}  // namespace egressclass
