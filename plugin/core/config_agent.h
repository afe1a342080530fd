// SPDX-License-Identifier: Apache-2.0
// The configuration's keys for egressd. Each reader notes what is wrong with the field, and gives what is right.
#pragma once

#include <optional>

#include "core/config.h"
#include "core/json_reader.h"

namespace egressclass {

/// Key "audit": an object, or false.
std::optional<AuditConfig> read_audit(const Field& field);

}  // namespace egressclass
