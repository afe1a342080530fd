// SPDX-License-Identifier: Apache-2.0
// The nft table of the gateway's namespace: SNAT to the egress IP that gateway_in has chosen, and nothing but replies
// back.
#pragma once

#include <string>

#include "core/plan.h"
#include "datapath/gateway_netns.h"
#include "util/result.h"

namespace egressclass {

/// The transaction that makes the table what `plan` says. One at a time; counters survive it.
std::string gateway_ruleset(const Plan& plan, unsigned tunnel_mtu);

Status apply_gateway_rules(const Fd& netns, const Plan& plan, unsigned tunnel_mtu);

}  // namespace egressclass
