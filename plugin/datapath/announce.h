// SPDX-License-Identifier: Apache-2.0
// Telling the link that an address is here now (RFC 5227, section 3: ARP announcement), so that neighbours with an
// old entry for it do not go on sending elsewhere until that expires.
#pragma once

#include <map>

#include "core/ip.h"
#include "datapath/netlink.h"
#include "util/result.h"

namespace egressclass {

/// Sends gratuitous ARP for IPv4 addresses, as request and as reply (some devices heed only one of them).
/// A link that is down, or that has no ARP, gets none, and that is no error.
Status announce_addresses(const Netlink& netlink, const std::map<Ip, int>& ifindex_of);

}  // namespace egressclass
