// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/watch.h"

#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>

#include "util/fd.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kEvents = IN_CREATE | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_ATTRIB |
                                  IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
constexpr int kSettleMs = 10;      // a file that is written is several events
constexpr int kLookAgainMs = 500;  // for folders that are not there, or not any more

bool say(std::string_view line) {
  return ::write(STDOUT_FILENO, line.data(), line.size()) == static_cast<ssize_t>(line.size());
}

/// The folders, those in them (drop-ins), and those in which the links in them end.
std::set<std::string> all_folders(const std::vector<std::string>& folders) {
  std::set<std::string> all(folders.begin(), folders.end());
  std::error_code ec;
  for (const std::string& folder : folders)
    for (fs::directory_iterator entry(folder, ec), end; !ec && entry != end; entry.increment(ec)) {
      std::error_code nowhere;
      if (entry->is_directory(nowhere)) all.insert(entry->path());
      if (!entry->is_symlink(nowhere)) continue;
      const fs::path target = fs::canonical(entry->path(), nowhere);
      if (!nowhere) all.insert(target.parent_path());
    }
  return all;
}

/// True when a folder is watched that was not: another one, or another of its name. The kernel knows what it watches.
bool watch_all(int inotify, const std::vector<std::string>& folders, std::set<int>& known) {
  std::set<int> now;
  for (const std::string& folder : all_folders(folders))
    if (const int id = ::inotify_add_watch(inotify, folder.c_str(), kEvents); id >= 0) now.insert(id);
  const bool more = !std::includes(known.begin(), known.end(), now.begin(), now.end());
  known = std::move(now);
  return more;
}

/// Reads what there is until it is quiet for a moment.
void drain(int inotify) {
  std::array<char, 16UL * 1024> events;
  pollfd input{.fd = inotify, .events = POLLIN, .revents = 0};
  do {
    if (::read(inotify, events.data(), events.size()) < 0 && errno != EINTR) return;
  } while (::poll(&input, 1, kSettleMs) > 0);
}

}  // namespace

Status watch_folders(const std::vector<std::string>& folders) {
  const Fd inotify(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify) return system_error("cannot watch", "inotify", errno, "raise fs.inotify.max_user_instances");
  std::set<int> known;
  watch_all(inotify.get(), folders, known);
  if (!say("ready\n")) return Ok{};
  for (;;) {
    std::array<pollfd, 2> fds{pollfd{.fd = inotify.get(), .events = POLLIN, .revents = 0},
                              pollfd{.fd = STDOUT_FILENO, .events = 0, .revents = 0}};
    if (::poll(fds.data(), fds.size(), kLookAgainMs) < 0 && errno != EINTR)
      return system_error("cannot watch", "poll", errno);
    if (fds[1].revents != 0) return Ok{};
    const bool happened = fds[0].revents != 0;
    if (happened) drain(inotify.get());
    const bool more = watch_all(inotify.get(), folders, known);
    if ((happened || more) && !say("changed\n")) return Ok{};
  }
}

}  // namespace egressclass
