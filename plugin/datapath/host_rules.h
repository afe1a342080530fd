// SPDX-License-Identifier: Apache-2.0
// The nft table of the host: what pods with a class send past the gateways is verified there, by conntrack.
#pragma once

#include <string>

#include "core/plan.h"
#include "util/result.h"

namespace egressclass {

/// The transaction that makes the table what `plan` says. One at a time; counters survive it.
std::string host_ruleset(const Plan& plan);

Status apply_host_rules(const Plan& plan);

}  // namespace egressclass
