// SPDX-License-Identifier: Apache-2.0
// TCX links (kernel 6.6 and newer): a program on an interface, kept by a pin in bpffs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

enum class Hook { kIngress, kEgress };

struct LinkState {
  int ifindex = 0;  ///< 0: the interface is gone, and the link is dead
  std::uint32_t program_id = 0;
};

/// Attaches before every other program, so that none can let a packet past ours, and pins the link at `pin`.
/// A live link at `pin` that is on the interface already is kept, and gets the program if it has another;
/// a dead one is replaced.
Status attach_link(int program_fd, int ifindex, Hook hook, const std::string& pin);

/// No value: there is no pin.
Result<std::optional<LinkState>> read_link(const std::string& pin);

/// Detaches, and removes the pin. Absent already is success.
Status remove_link(const std::string& pin);

}  // namespace egressclass
