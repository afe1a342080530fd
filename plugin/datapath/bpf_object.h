// SPDX-License-Identifier: Apache-2.0
// What the kernel says of a BPF program or map.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "util/result.h"

namespace egressclass {

/// The kernel's number of a program. Needs no capability.
Result<std::uint32_t> program_id(int program_fd);

/// The numbers of all maps that a program holds.
Result<std::set<std::uint32_t>> maps_of_program(int program_fd);

/// The number of the map at a pin.
Result<std::uint32_t> pinned_map_id(const std::string& pin);

}  // namespace egressclass
