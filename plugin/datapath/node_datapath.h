// SPDX-License-Identifier: Apache-2.0
// The kernel's state of the whole node: made equal to a plan, or removed. Callers hold the node's lock alone.
#pragma once

#include <string>
#include <vector>

#include "core/attachment.h"
#include "core/plan.h"
#include "datapath/programs.h"
#include "datapath/rulesets.h"
#include "util/result.h"

namespace egressclass {

/// A running pod that got another class.
struct Reclassed {
  Attachment now;
  std::string before;
};

/// Of what make_plan() needs to know, all that anybody may read: addresses, interfaces, and what is applied.
Result<NodeFacts> gather_public_facts();
/// What make_plan() needs to know, read from the kernel and the state folder. `attachments`: all that there are, here
/// as below.
Result<NodeFacts> gather_facts(const std::vector<Attachment>& attachments);

/// The rules for `plan`, to be written by realize(). Reads only, and needs the maps of install_programs(). An error
/// when not all of the plan fits in them.
Result<RulesetChange> fit(const Plan& plan);

/// Makes the node equal to `plan`, whatever it was before; what is right already is not touched. `programs`: of
/// install_programs(), whose failure changes nothing. `rulesets`: of fit().
/// Returns the pods that have another class than `attachments` say.
/// A failure here leaves a mixture in which nothing leaks; realize() of another plan, or tear_down(), mends it.
Result<std::vector<Reclassed>> realize(const Plan& plan, const Programs& programs, RulesetChange rulesets,
                                       const std::vector<Attachment>& attachments);

/// Removes everything of ours, except that pods with a class keep their classifier, which drops what it would have
/// steered. Returns how many such pods there are. Every step is tried, and the error says all that failed; then what
/// another try needs is still there.
Result<std::size_t> tear_down();

}  // namespace egressclass
