// SPDX-License-Identifier: Apache-2.0
// A TCX program that an interface itself holds (BPF_PROG_ATTACH; kernel 6.6 and newer): it goes with the interface, and
// neither with a pin nor with bpffs.
#pragma once

#include <cstdint>

#include "util/result.h"

namespace egressclass {

/// The program on the ingress of the interface, right behind the program `behind` if that is there. One of the same
/// name, of another build or with other maps, gives up its place. Looking at that needs CAP_SYS_ADMIN.
Status hold_program(int program_fd, int ifindex, std::uint32_t behind);

Result<bool> holds_program(std::uint32_t program_id, int ifindex);

/// Takes off the one of that name, whatever build it is of. Absent already is success.
Status release_program_named(const char* name, int ifindex);

/// Takes it off, or the one of the same name. Absent already is success, and so is an interface that is gone.
Status release_program(int program_fd, int ifindex);

}  // namespace egressclass
