// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/replace.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "bootstrap/conf_folder.h"
#include "util/file.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxExecutableBytes = 256UL << 20U;

std::string hint(int err) {
  if (err == EROFS) return "the file system is read-only: name a folder that is not, or remount it";
  if (err == EACCES || err == EPERM)
    return ::geteuid() == 0 ? "root, and yet refused: look for SELinux or AppArmor denials, or chattr +i"
                            : "run as root";
  if (err == ENOSPC || err == EDQUOT) return "nothing was changed: make room, and run this again";
  return {};
}

Error failed(const char* what, const std::string& object, int err) {
  return system_error(what, object, err, hint(err));
}

Status sync_folder(const fs::path& folder) {
  const Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) return failed("cannot sync folder", folder, errno);
  return Ok{};
}

/// A file beside the target that is removed unless it has taken its place.
class Temporary {
 public:
  explicit Temporary(const fs::path& folder) : path_(folder / (std::string(kTemporaryPrefix) + "XXXXXX")) {
    fd_ = Fd(::mkostemp(path_.data(), O_CLOEXEC));
    if (!fd_) error_ = errno;
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    if (fd_ && !path_.empty()) ::unlink(path_.c_str());
  }

  int error() const { return error_; }
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
  Fd fd_;
  int error_ = 0;
};

Status write_whole(int fd, const std::string& path, std::string_view content) {
  while (!content.empty()) {
    const ssize_t put = ::write(fd, content.data(), content.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return failed("cannot write beside", path, errno);
    content.remove_prefix(static_cast<std::size_t>(put));
  }
  return Ok{};
}

/// SELinux labels and access lists. Where they cannot be carried over the folder's defaults have to do.
void copy_attributes(const std::string& from, int to) {
  std::vector<char> names(64UL * 1024);
  const ssize_t size = ::listxattr(from.c_str(), names.data(), names.size());
  std::vector<char> value(64UL * 1024);
  for (ssize_t at = 0; at < size;) {
    const char* name = names.data() + at;
    at += static_cast<ssize_t>(std::string_view(name).size() + 1);
    const ssize_t got = ::getxattr(from.c_str(), name, value.data(), value.size());
    if (got >= 0) ::fsetxattr(to, name, value.data(), static_cast<std::size_t>(got), 0);
  }
}

Status take_over_attributes(const std::string& path, int fd) {
  struct stat old {};
  if (::stat(path.c_str(), &old) != 0) return failed("cannot look at", path, errno);
  struct stat now {};
  if (::fstat(fd, &now) != 0) return failed("cannot look at", path, errno);
  const bool same_owner = old.st_uid == now.st_uid && old.st_gid == now.st_gid;
  if (!same_owner && ::fchown(fd, old.st_uid, old.st_gid) != 0) return failed("cannot keep the owner of", path, errno);
  copy_attributes(path, fd);
  if (::fchmod(fd, old.st_mode & 07777U) != 0) return failed("cannot keep the mode of", path, errno);
  return Ok{};
}

Result<bool> still_is(const std::string& path, const std::string& content, std::size_t max_bytes = kMaxNetworkBytes) {
  auto now = read_file(path, max_bytes);
  if (!now) return now.error();
  return *now == content;
}

/// Both names change hands at once, so that a file that was written since it was read is noticed, and comes back.
Result<Written> exchange(Temporary& temporary, const std::string& path, const std::string& before) {
  const char* aside = temporary.path().c_str();
  if (::renameat2(AT_FDCWD, aside, AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    auto same = still_is(temporary.path(), before);
    if (same && *same) return Written::kDone;
    if (::renameat2(AT_FDCWD, aside, AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0)
      return failed("cannot put back", path, errno);
    if (!same) return same.error();
    return Written::kChangedMeanwhile;
  }
  if (errno == ENOENT) return Written::kChangedMeanwhile;
  if (errno != EINVAL && errno != ENOSYS) return failed("cannot replace", path, errno);
  // A file system without exchange (NFS): a last look has to do.
  auto same = still_is(path, before);
  if (!same) return same.error();
  if (!*same) return Written::kChangedMeanwhile;
  if (::rename(aside, path.c_str()) != 0) return failed("cannot replace", path, errno);
  temporary.keep();
  return Written::kDone;
}

Result<Written> create(Temporary& temporary, const std::string& path) {
  if (::renameat2(AT_FDCWD, temporary.path().c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) {
    temporary.keep();
    return Written::kDone;
  }
  if (errno == EEXIST) return Written::kChangedMeanwhile;
  if (errno != EINVAL && errno != ENOSYS) return failed("cannot create", path, errno);
  if (::access(path.c_str(), F_OK) == 0) return Written::kChangedMeanwhile;
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) return failed("cannot create", path, errno);
  temporary.keep();
  return Written::kDone;
}

Result<Written> put(const fs::path& target, const std::optional<std::string>& before, const std::string& after) {
  Temporary temporary(target.parent_path());
  if (temporary.error() != 0) return failed("cannot create a file in", target.parent_path(), temporary.error());
  if (const Status status = write_whole(temporary.fd(), target, after); !status) return status.error();
  if (before) {
    if (const Status status = take_over_attributes(target, temporary.fd()); !status) return status.error();
  } else if (::fchmod(temporary.fd(), 0644) != 0) {
    return failed("cannot set the mode of", target, errno);
  }
  if (::fsync(temporary.fd()) != 0) return failed("cannot sync", target, errno);
  auto written = before ? exchange(temporary, target, *before) : create(temporary, target);
  if (!written) return written;
  // What was exchanged goes only after the new name is on disk.
  if (const Status status = sync_folder(target.parent_path()); !status) return status.error();
  return written;
}

Result<Written> drop(const fs::path& target, const std::string& before) {
  auto same = still_is(target, before);
  if (!same) return same.error();
  if (!*same) return Written::kChangedMeanwhile;
  if (::unlink(target.c_str()) != 0) return failed("cannot remove", target, errno);
  if (const Status status = sync_folder(target.parent_path()); !status) return status.error();
  return Written::kDone;
}

Status make_folder(const fs::path& folder) {
  if (::mkdir(folder.c_str(), 0755) == 0) return sync_folder(folder.parent_path());
  if (errno != EEXIST) return failed("cannot make folder", folder, errno);
  return Ok{};
}

}  // namespace

Result<Written> replace_content(const std::string& path, const std::optional<std::string>& before,
                                const std::optional<std::string>& after) {
  if (before == after) return Written::kDone;
  fs::path target(path);
  if (before) {
    std::error_code ec;
    target = fs::canonical(path, ec);
    if (ec) return failed("cannot find", path, ec.value());
  } else if (const Status status = make_folder(target.parent_path()); !status) {
    return status.error();
  }
  return after ? put(target, before, *after) : drop(target, *before);
}

Result<bool> install_executable(const std::string& source, const std::string& target) {
  constexpr mode_t kMode = 0755;
  auto content = read_file(source, kMaxExecutableBytes);
  if (!content) return content.error();
  if (!*content) return make_error("no such file", source);
  struct stat now {};
  if (::lstat(target.c_str(), &now) == 0 && S_ISREG(now.st_mode) && (now.st_mode & 07777U) == kMode) {
    auto same = still_is(target, **content, kMaxExecutableBytes);
    if (same && *same) return false;
  }
  const fs::path folder = fs::path(target).parent_path();
  Temporary temporary(folder);
  if (temporary.error() != 0) return failed("cannot create a file in", folder, temporary.error());
  if (const Status status = write_whole(temporary.fd(), target, **content); !status) return status.error();
  if (::fchmod(temporary.fd(), kMode) != 0) return failed("cannot set the mode of", target, errno);
  if (::fsync(temporary.fd()) != 0) return failed("cannot sync", target, errno);
  if (::rename(temporary.path().c_str(), target.c_str()) != 0) return failed("cannot replace", target, errno);
  temporary.keep();
  if (const Status status = sync_folder(folder); !status) return status.error();
  return true;
}

Result<Fd> lock_folder(const std::string& folder) {
  using namespace std::chrono_literals;
  const auto deadline = std::chrono::steady_clock::now() + 30s;
  Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return failed("cannot open folder", folder, errno);
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return failed("cannot lock folder", folder, errno);
    if (std::chrono::steady_clock::now() >= deadline)
      return make_error("the folder is locked", folder + ": another bootstrap is at work there, and does not end");
    std::this_thread::sleep_for(10ms);
  }
  return fd;
}

void sweep(const std::string& folder) {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(folder, ec)) {
    std::error_code gone;
    if (entry.path().filename().string().starts_with(kTemporaryPrefix))
      fs::remove(entry.path(), gone);
    else if (entry.symlink_status(gone).type() == fs::file_type::directory)
      for (const auto& inner : fs::directory_iterator(entry.path(), gone))
        if (inner.path().filename().string().starts_with(kTemporaryPrefix)) fs::remove(inner.path(), gone);
  }
}

void poke(const std::string& folder) { const Temporary nothing{fs::path(folder)}; }

}  // namespace egressclass
