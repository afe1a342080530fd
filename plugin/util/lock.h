// SPDX-License-Identifier: Apache-2.0
// One lock for the node's state: attachments share it, `egressctl apply` and `down` hold it alone, so that the
// meaning of a class id cannot change while a pod is given one.
#pragma once

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

enum class LockMode { kShared, kExclusive };

/// Waits at most `timeout_ms`. The lock ends with the descriptor, so also with the process.
Result<Fd> lock_node(LockMode mode, int timeout_ms = 10'000);

}  // namespace egressclass
