// SPDX-License-Identifier: Apache-2.0
#include "util/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "datapath/paths.h"

namespace egressclass {

Result<Fd> lock_node(LockMode mode, int timeout_ms) {
  if (::mkdir(paths::kRunDir, 0755) != 0 && errno != EEXIST)
    return system_error("cannot make the state folder", paths::kRunDir, errno);
  Fd fd(::open(paths::kLock, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return system_error("cannot open the node's lock", paths::kLock, errno);

  using namespace std::chrono_literals;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const int operation = (mode == LockMode::kShared ? LOCK_SH : LOCK_EX) | LOCK_NB;
  while (::flock(fd.get(), operation) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return system_error("cannot lock", paths::kLock, errno);
    if (std::chrono::steady_clock::now() >= deadline)
      return make_error("the node's state is locked", std::string(paths::kLock) + ": held for more than " +
                                                          std::to_string(timeout_ms) +
                                                          " ms by another egressclass or egressctl");
    std::this_thread::sleep_for(2ms);
  }
  return fd;
}

}  // namespace egressclass
