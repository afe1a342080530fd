// SPDX-License-Identifier: Apache-2.0
// One lock for the node's state: attachments share it, `egressctl apply` and `down` hold it alone, so that the
// meaning of a class id cannot change while a pod is given one.
#pragma once

#include <cstdint>

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

enum class LockMode { kShared, kExclusive };

/// Waits at most `timeout_ms`: kTryAgainLater. The lock ends with the descriptor, so also with the process.
Result<Fd> lock_node(LockMode mode, int timeout_ms = 10'000);

/// Among those who share the node's lock: alone with one attachment (by its cookie), or with one interface, until
/// `lock` is closed. In this order.
Status lock_attachment(const Fd& lock, std::uint64_t cookie, int timeout_ms = 10'000);
Status lock_interface(const Fd& lock, int ifindex, int timeout_ms = 10'000);

}  // namespace egressclass
