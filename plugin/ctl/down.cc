// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "ctl/commands.h"
#include "datapath/expedite.h"
#include "datapath/node_datapath.h"
#include "util/lock.h"

namespace egressclass::ctl {

int down() {
  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return fail(lock.error());
  Expedite::mend();
  auto pods = tear_down();
  if (!pods) return fail(pods.error());
  if (*pods != 0)
    std::printf(
        "down, except that %zu running pods have a class: their classifiers stay, and drop what they would have "
        "steered.\nRun `egressctl down` again when those pods are gone.\n",
        *pods);
  return kSuccess;
}

}  // namespace egressclass::ctl
