// SPDX-License-Identifier: Apache-2.0
// Whether chains, sets and maps still hold what `egressctl apply` has put there. Knows nothing of their meaning: it
// compares with a fingerprint of what the kernel had right after.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../bpf/egressclass.h"
#include "util/result.h"

namespace egressclass {

/// Takes the fingerprint. The last step of an apply. `rules`: all that it left in that map, which takes long to read.
Status note_integrity(const std::vector<std::pair<ec_rule_key, ec_rule>>& rules);

/// The objects that are not what they were then: "chain guard", "map classes". A nft table that is missing as a whole
/// is not among them. To be asked with the node's lock shared: an apply under way would show half of itself.
Result<std::vector<std::string>> altered_objects();

}  // namespace egressclass
