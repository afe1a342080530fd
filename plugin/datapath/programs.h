// SPDX-License-Identifier: Apache-2.0
// The BPF programs and maps of this build, loaded into the kernel and pinned.
#pragma once

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

/// Program descriptors; the pins hold them too.
struct Programs {
  Fd classify;
  Fd classify_again;
  Fd tunnel_in;
  Fd tunnel_out;
  Fd nexthop_in;
  Fd uplink_in;
  Fd gateway_in;
  Fd gateway_out;
};

/// Loads what is not pinned yet. Pinned maps are kept with their content (refused when of another layout); pinned
/// programs are replaced when this build has others, or when they hold other maps than those that are pinned. The links
/// of all pods follow at once, in place, whether or not there is a record of the pod.
Result<Programs> install_programs();

/// Whether maps and programs are pinned as install_programs() left them.
bool pins_are_intact();

/// An error when what is pinned is another version's, whose maps this one would misread.
Status refuse_other_layout();

/// Removes every pin. Links that still hold a program lose it.
Status remove_pins();

}  // namespace egressclass
