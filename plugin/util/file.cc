// SPDX-License-Identifier: Apache-2.0
#include "util/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "util/fd.h"

namespace egressclass {

Result<std::string> read_all(int fd, const std::string& name, std::size_t max_bytes) {
  std::string content;
  std::vector<char> buffer(64UL * 1024);
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("cannot read", name, errno);
    if (got == 0) return content;
    content.append(buffer.data(), static_cast<std::size_t>(got));
    if (content.size() > max_bytes)
      return make_error("too large", name + ": more than " + std::to_string(max_bytes) + " bytes");
  }
}

Result<std::optional<std::string>> read_file(const std::string& path, std::size_t max_bytes) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && (errno == ENOENT || errno == ENOTDIR)) return std::optional<std::string>();
  if (!fd) return system_error("cannot open", path, errno);
  auto content = read_all(fd.get(), path, max_bytes);
  if (!content) return content.error();
  return std::optional<std::string>(std::move(*content));
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ec;
  for (std::filesystem::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    names.push_back(it->path().filename());
  std::ranges::sort(names);
  return names;
}

Status write_file_atomic(const std::string& path, const std::string& content, unsigned mode) {
  const std::filesystem::path target(path);
  std::error_code ec;
  std::filesystem::create_directories(target.parent_path(), ec);
  if (ec) return system_error("cannot make folder", target.parent_path(), ec.value());

  // The leading dot keeps readers of the folder from taking a half-written file for an entry.
  std::string temporary = (target.parent_path() / ("." + target.filename().string() + ".XXXXXX")).string();
  const Fd fd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd) return system_error("cannot create file in", target.parent_path(), errno);

  const auto failed = [&](const char* step) {
    const int err = errno;
    ::unlink(temporary.c_str());
    return system_error(step, path, err);
  };
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t put = ::write(fd.get(), content.data() + done, content.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return failed("cannot write");
    done += static_cast<std::size_t>(put);
  }
  if (::fchmod(fd.get(), mode) != 0) return failed("cannot set mode of");
  if (::fsync(fd.get()) != 0) return failed("cannot sync");
  if (::rename(temporary.c_str(), path.c_str()) != 0) return failed("cannot replace");

  const Fd folder(::open(target.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) return system_error("cannot sync folder", target.parent_path(), errno);
  return Ok{};
}

}  // namespace egressclass
