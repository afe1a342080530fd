// SPDX-License-Identifier: Apache-2.0
// Whether this node may have the egress IPs that come to it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/plan.h"

namespace egressclass::ctl {

/// Those that another machine on the link has, and goes on having for some seconds: the gateway from which one comes
/// may give it up under the same configuration a moment later. Not counted are those of classes with "force", and those
/// that the configuration `in_force` has given to another gateway: now it gives them to this one, whichever hears of
/// it first. Changes nothing; prints what cannot be told.
std::vector<ConfigProblem> held_by_others(const Plan& plan, const NodeFacts& facts,
                                          const std::optional<std::string>& in_force);

}  // namespace egressclass::ctl
