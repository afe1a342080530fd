// SPDX-License-Identifier: Apache-2.0
#include "datapath/in_netns.h"

#include <fcntl.h>
#include <sched.h>

#include <cerrno>
#include <cstdlib>

namespace egressclass {
namespace {

constexpr const char* kOwn = "/proc/thread-self/ns/net";

std::string hint(int reason) { return reason == EPERM ? "needs CAP_SYS_ADMIN" : ""; }

}  // namespace

Result<InNetns> InNetns::enter(const Fd& netns, const std::string& name) {
  Fd home(::open(kOwn, O_RDONLY | O_CLOEXEC));
  if (!home) return system_error("cannot open the own network namespace", kOwn, errno);
  if (::setns(netns.get(), CLONE_NEWNET) != 0)
    return system_error("cannot enter the network namespace", name, errno, hint(errno));
  return InNetns(std::move(home));
}

Result<InNetns> InNetns::enter_new(const std::string& name) {
  Fd home(::open(kOwn, O_RDONLY | O_CLOEXEC));
  if (!home) return system_error("cannot open the own network namespace", kOwn, errno);
  if (::unshare(CLONE_NEWNET) != 0) return system_error("cannot make the network namespace", name, errno, hint(errno));
  return InNetns(std::move(home));
}

InNetns::~InNetns() {
  if (home_ && ::setns(home_.get(), CLONE_NEWNET) != 0) std::abort();
}

}  // namespace egressclass
