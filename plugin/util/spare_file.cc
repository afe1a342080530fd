// SPDX-License-Identifier: Apache-2.0
#include "util/spare_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "util/fd.h"

namespace egressclass {
namespace {

/// Takes the blocks for a file's first `bytes`, and leaves its content alone, and the time of its last change.
Status allocate(const std::string& path, int flags, std::size_t bytes) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0600));
  if (!fd && errno == ENOENT) return Ok{};
  struct stat before {};
  if (!fd || ::fstat(fd.get(), &before) != 0) return system_error("cannot open", path, errno);
  constexpr std::size_t kBlock = 512;
  if (static_cast<std::size_t>(before.st_blocks) * kBlock >= bytes) return Ok{};
  while (::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP) return Ok{};  // of a file system that cannot: who writes will notice
    return system_error("cannot reserve room for the next content of", path, errno,
                        std::to_string(bytes) + " bytes; make room on that file system");
  }
  const timespec times[] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, before.st_mtim};
  [[maybe_unused]] const int restored = ::futimens(fd.get(), times);
  return Ok{};
}

Status make_folder_of(const std::string& path) {
  std::error_code ec;
  const auto folder = std::filesystem::path(path).parent_path();
  std::filesystem::create_directories(folder, ec);
  if (ec) return system_error("cannot make folder", folder, ec.value());
  return Ok{};
}

}  // namespace

std::string spare_of(const std::string& path) {
  const std::filesystem::path target(path);
  return target.parent_path() / ("." + target.filename().string() + ".spare");
}

Status reserve_file(const std::string& path, std::size_t bytes) {
  if (auto made = make_folder_of(path); !made) return made;
  if (auto reserved = allocate(spare_of(path), O_CREAT, bytes); !reserved) return reserved;
  return allocate(path, 0, bytes);
}

Status write_reserved(const std::string& path, const std::string& content, unsigned mode) {
  if (auto made = make_folder_of(path); !made) return made;
  return write_by_spare(spare_of(path), path, content, mode);
}

Status write_by_spare(const std::string& spare, const std::string& path, const std::string& content, unsigned mode) {
  const Fd fd(::open(spare.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return system_error("cannot open", spare, errno);
  // Over what is there: to truncate it first would give its room away.
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t put = ::pwrite(fd.get(), content.data() + done, content.size() - done, static_cast<off_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return system_error("cannot write", spare, errno);
    done += static_cast<std::size_t>(put);
  }
  struct stat before {};
  if (::fstat(fd.get(), &before) != 0) return system_error("cannot look at", spare, errno);
  if (before.st_size != static_cast<off_t>(content.size())) {
    if (::ftruncate(fd.get(), static_cast<off_t>(content.size())) != 0)
      return system_error("cannot set the length of", spare, errno);
    // It gave away the room behind its end. Back with it, for the next time: not needed now, so it may fail.
    constexpr off_t kBlock = 512;
    [[maybe_unused]] const int kept = ::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, before.st_blocks * kBlock);
  }
  if (::fchmod(fd.get(), mode) != 0) return system_error("cannot set mode of", spare, errno);
  if (::fsync(fd.get()) != 0) return system_error("cannot sync", spare, errno);
  // Whoever reads finds the old content or the new. Where there is nothing to exchange, or no way to, the spare is used
  // up.
  if (::renameat2(AT_FDCWD, spare.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0 &&
      ::rename(spare.c_str(), path.c_str()) != 0)
    return system_error("cannot replace", path, errno);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const Fd folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_fd || ::fsync(folder_fd.get()) != 0) return system_error("cannot sync folder", folder, errno);
  return Ok{};
}

}  // namespace egressclass
