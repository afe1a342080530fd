// SPDX-License-Identifier: Apache-2.0
#include "datapath/in_netns.h"

#include <fcntl.h>
#include <sched.h>

#include <cerrno>
#include <cstdlib>

namespace egressclass {

Result<InNetns> InNetns::enter(const Fd& netns) {
  constexpr const char* kOwn = "/proc/thread-self/ns/net";
  Fd home(::open(kOwn, O_RDONLY | O_CLOEXEC));
  if (!home) return system_error("cannot open the own network namespace", kOwn, errno);
  if (::setns(netns.get(), CLONE_NEWNET) != 0)
    return system_error("cannot enter the network namespace", "setns", errno,
                        errno == EPERM ? "needs CAP_SYS_ADMIN" : "");
  return InNetns(std::move(home));
}

InNetns::~InNetns() {
  if (home_ && ::setns(home_.get(), CLONE_NEWNET) != 0) std::abort();
}

}  // namespace egressclass
