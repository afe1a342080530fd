// SPDX-License-Identifier: Apache-2.0
// Room on the file systems for all that an apply writes, taken before it changes anything.
#pragma once

#include <string>

#include "core/plan.h"
#include "util/result.h"

namespace egressclass {

/// For an apply of `plan`, whose text is `config`, and for putting back what is in force. An error: there is not
/// enough.
Status reserve_state(const Plan& plan, const std::string& config);

}  // namespace egressclass
