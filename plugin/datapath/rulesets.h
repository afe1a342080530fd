// SPDX-License-Identifier: Apache-2.0
// The prefixes of each class in the map `rules`. A class whose prefixes change gets a new ruleset, complete before
// its entry in `classes` points there: a packet meets the old prefixes or the new, never a mixture.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/plan.h"
#include "util/result.h"

namespace egressclass {

/// Writes what is not there yet, and what is never steered. Returns the ruleset of each class by name.
/// Refuses before it writes when the map has not enough room.
Result<std::map<std::string, std::uint32_t>> write_rulesets(const Plan& plan);

/// Deletes all rulesets of classes but `used`.
Status remove_unused_rulesets(const std::map<std::string, std::uint32_t>& used);

}  // namespace egressclass
