// SPDX-License-Identifier: Apache-2.0
// Telling the neighbours on a link where an egress IP is now.
#pragma once

#include "core/plan.h"
#include "util/result.h"

namespace egressclass {

/// Announces all egress IPs that are on this node, on their interfaces: also those that have been here, since another
/// gateway, from which one came, may have announced it later than this one. All are tried; the error says which failed,
/// and is a reason to tell people, not to undo anything. Interfaces that are down, or have no MAC address, are passed
/// over.
Status announce_egress_ips(const Plan& plan);

/// The same a second later, and two more seconds later (RFC 5227, 2.3), since an announcement can get lost: by a
/// process that outlives this one, and that leaves out what is not on its interface any more.
void announce_again(const Plan& plan);

}  // namespace egressclass
