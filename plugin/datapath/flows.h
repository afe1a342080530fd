// SPDX-License-Identifier: Apache-2.0
// Ending flows in the kernel's conntrack: a flow keeps its translation for as long as it has packets, also one that its
// class does not have any more.
#pragma once

#include <cstdint>

#include "util/result.h"

namespace egressclass {

/// Deletes the flows, of both families, whose ct mark is `mark` under `mask`; their next packet opens a new one. Those
/// of the thread's network namespace. (ctnetlink: IPCTNL_MSG_CT_DELETE without a tuple, filtered by CTA_MARK.)
Status end_flows(std::uint32_t mark, std::uint32_t mask);

/// How many new flows conntrack could not enter, since boot: their NAT had found no free port (and, rarely, two packets
/// of one flow at once). Such packets are dropped. Of the thread's network namespace.
Result<std::uint64_t> flows_not_entered();

}  // namespace egressclass
