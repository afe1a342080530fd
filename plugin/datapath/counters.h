// SPDX-License-Identifier: Apache-2.0
// What the BPF programs counted: the map `counters`, summed over the CPUs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "../bpf/egressclass.h"
#include "util/result.h"

namespace egressclass {

/// (class id, event) -> packets and bytes. Class id 0: the class was not known.
using Counters = std::map<std::pair<std::uint32_t, ec_event>, ec_counter>;

Result<Counters> read_counters();

/// Forgets what was counted for a class id.
Status erase_counters(std::uint32_t class_id);

/// "spoofed", "steered_tunnel", ...: the names in bpf/egressclass.h.
const char* event_name(ec_event event);
inline bool is_drop(ec_event event) { return event >= EC_FIRST_DROP; }

}  // namespace egressclass
