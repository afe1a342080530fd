// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sched.h>

#include <cerrno>

#include "ctl/commands.h"
#include "datapath/gateway_netns.h"
#include "util/fd.h"
#include "util/lock.h"

namespace egressclass::ctl {
namespace {

/// What a unit mounts is for its own processes alone, even in a command ahead of its sandbox ("+"): the name of the
/// namespace has to be where everybody looks for it.
Status enter_mount_namespace_of_init() {
  constexpr const char* kOfInit = "/proc/1/ns/mnt";
  const Fd mounts(::open(kOfInit, O_RDONLY | O_CLOEXEC));
  if (!mounts) return system_error("cannot open the mount namespace", kOfInit, errno);
  if (::setns(mounts.get(), CLONE_NEWNS) != 0) return system_error("cannot enter the mount namespace", kOfInit, errno);
  return Ok{};
}

}  // namespace

int netns() {
  if (auto entered = enter_mount_namespace_of_init(); !entered) return fail(entered.error());
  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return fail(lock.error());
  auto made = make_gateway_netns();
  return made ? kSuccess : fail(made.error());
}

}  // namespace egressclass::ctl
