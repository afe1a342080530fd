// SPDX-License-Identifier: Apache-2.0
#include "util/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "cni/codes.h"
#include "datapath/paths.h"

namespace egressclass {

namespace {

using Clock = std::chrono::steady_clock;

/// flock() with a deadline. The file may have been removed meanwhile (`egressctl down`): a lock on it is worth nothing.
Result<Fd> lock_file(const char* path, int operation, Clock::time_point deadline) {
  using namespace std::chrono_literals;
  constexpr int kTries = 100;
  for (int missing = 0;;) {
    if (::mkdir(paths::kRunDir, 0755) != 0 && errno != EEXIST)
      return system_error("cannot make the state folder", paths::kRunDir, errno);
    Fd fd(::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd && errno == ENOENT && ++missing < kTries) continue;  // removed between the two calls
    if (!fd) return system_error("cannot open the node's lock", path, errno);
    while (::flock(fd.get(), operation | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) return system_error("cannot lock", path, errno);
      if (Clock::now() >= deadline)
        return Error{codes::kTryAgainLater, "the node's state is locked",
                     std::string(path) + ": another egressclass or egressctl holds it for too long"};
      std::this_thread::sleep_for(2ms);
    }
    struct stat ours {
    }, theirs{};
    if (::fstat(fd.get(), &ours) == 0 && ::stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino) return fd;
  }
}

/// Each thing has a byte of the lock file, which need not be that long.
Status lock_byte(const Fd& lock, std::uint64_t at, int timeout_ms) {
  using namespace std::chrono_literals;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  struct ::flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(at);
  range.l_len = 1;
  while (::fcntl(lock.get(), F_OFD_SETLK, &range) != 0) {
    if (errno != EAGAIN && errno != EACCES && errno != EINTR) return system_error("cannot lock", paths::kLock, errno);
    if (Clock::now() >= deadline)
      return make_error("the pod's state is locked",
                        std::string(paths::kLock) + ": another egressclass holds it for too long");
    std::this_thread::sleep_for(1ms);
  }
  return Ok{};
}

}  // namespace

Status lock_attachment(const Fd& lock, std::uint64_t cookie, int timeout_ms) {
  return lock_byte(lock, (1ULL << 62U) | (cookie >> 2U), timeout_ms);
}

Status lock_interface(const Fd& lock, int ifindex, int timeout_ms) {
  return lock_byte(lock, static_cast<std::uint64_t>(ifindex), timeout_ms);
}

Result<Fd> lock_node(LockMode mode, int timeout_ms) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const int operation = mode == LockMode::kShared ? LOCK_SH : LOCK_EX;
  // Through the gate one at a time: who waits for the lock alone holds it, and the sharers drain behind it.
  const auto gate = lock_file(paths::kLockGate, operation, deadline);
  if (!gate) return gate.error();
  return lock_file(paths::kLock, operation, deadline);
}

}  // namespace egressclass
