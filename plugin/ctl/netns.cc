// SPDX-License-Identifier: Apache-2.0
#include "ctl/commands.h"
#include "datapath/gateway_netns.h"
#include "util/lock.h"

namespace egressclass::ctl {

int netns() {
  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return fail(lock.error());
  auto made = make_gateway_netns();
  return made ? kSuccess : fail(made.error());
}

}  // namespace egressclass::ctl
