// SPDX-License-Identifier: Apache-2.0
#include "datapath/expedite.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "datapath/paths.h"

namespace egressclass {
namespace {

constexpr const char* kSetting = "/sys/kernel/rcu_expedited";

Fd open_marker(int create) { return Fd(::open(paths::kExpedited, O_RDWR | O_CLOEXEC | create, 0600)); }

bool lock(const Fd& marker, int operation) { return ::flock(marker.get(), operation | LOCK_NB) == 0; }

/// For the last who has the marker open and locked; others leave it to that one. The marker is there for as long
/// as the value may be ours.
void put_back(const Fd& marker) {
  if (!lock(marker, LOCK_EX)) return;
  struct stat info {};
  if (::fstat(marker.get(), &info) != 0 || info.st_nlink == 0) return;
  const Fd setting(::open(kSetting, O_WRONLY | O_CLOEXEC));
  if (setting && ::pwrite(setting.get(), "0", 1, 0) == 1) ::unlink(paths::kExpedited);
}

}  // namespace

Expedite::Expedite() {
  const Fd setting(::open(kSetting, O_RDWR | O_CLOEXEC));
  char value = 0;
  if (!setting || ::pread(setting.get(), &value, 1, 0) != 1) return;
  Fd marker = open_marker(value == '0' ? O_CREAT : 0);
  if (!marker) return;  // somebody else wants them expedited, for good
  struct stat info {};
  if (!lock(marker, LOCK_SH) || ::fstat(marker.get(), &info) != 0 || info.st_nlink == 0) return;  // just being put back
  marker_ = std::move(marker);
  [[maybe_unused]] const ssize_t written = ::pwrite(setting.get(), "1", 1, 0);
}

Expedite::~Expedite() {
  if (marker_) put_back(marker_);
}

void Expedite::mend() {
  if (const Fd marker = open_marker(0)) put_back(marker);
}

}  // namespace egressclass
