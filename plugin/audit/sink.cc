// SPDX-License-Identifier: Apache-2.0
#include "audit/sink.h"

#include <poll.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>

#include "util/clock.h"

namespace egressclass::audit {
namespace {

constexpr std::chrono::milliseconds kGather(20);  // many lines at once cost one system call
constexpr std::chrono::seconds kRetry(1);

std::uint64_t lines_in(std::string_view text) { return static_cast<std::uint64_t>(std::ranges::count(text, '\n')); }

}  // namespace

Sink::Sink(Write write, RecordWriter records, std::size_t max_bytes)
    : write_(std::move(write)), records_(std::move(records)), max_bytes_(max_bytes), thread_([this] { run(); }) {}

Sink::~Sink() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  wakeup_.notify_one();
  thread_.join();
}

void Sink::put(std::string_view line) {
  const std::scoped_lock lock(mutex_);
  if (queue_.size() + line.size() > max_bytes_)
    lose(lines_in(line), "the writer cannot keep up");
  else
    queue_.append(line);
}

std::string Sink::trouble() const {
  const std::scoped_lock lock(mutex_);
  return trouble_;
}

/// With the lock held.
void Sink::lose(std::uint64_t count, const std::string& reason) {
  lost_ += count;
  unsaid_ += count;
  reason_ = reason;
}

void Sink::run() {
  std::unique_lock lock(mutex_);
  for (bool last = false; !last;) {
    wakeup_.wait_for(lock, trouble_.empty() ? kGather : kRetry, [&] { return stop_; });
    last = stop_;
    std::string lines;
    std::uint64_t said = 0;
    if (unsaid_ != 0) {
      lines = records_.lost(unsaid_, "records", reason_, now_ns());
      said = unsaid_;
    }
    if (lines.empty() && queue_.empty()) continue;
    const std::size_t own = lines.size();
    lines += queue_;
    queue_.clear();
    if (queue_.capacity() > max_bytes_ / 4) queue_.shrink_to_fit();
    lock.unlock();

    std::size_t written = 0;
    const Status done = write_(lines, &written);
    const std::string_view text(lines);
    const std::uint64_t missing = lines_in(text.substr(std::max(written, own)));

    lock.lock();
    if (written >= own) {
      unsaid_ -= said;
      written_ += lines_in(text.substr(own, written - own));
    }
    trouble_ = done ? "" : done.error().details;
    if (missing != 0) lose(missing, done ? "not written" : done.error().details);
  }
}

Status write_to_stdout(std::string_view lines, std::size_t* written) {
  constexpr int kPatienceMs = 1000;
  for (*written = 0; *written < lines.size();) {
    // What poll() promises room for, a pipe takes without blocking: PIPE_BUF bytes (pipe(7)).
    const std::string_view rest = lines.substr(*written);
    const auto feed = rest.substr(0, PIPE_BUF).rfind('\n');
    const std::size_t length = feed == std::string_view::npos ? std::min<std::size_t>(rest.size(), PIPE_BUF) : feed + 1;
    pollfd out{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
    const int ready = ::poll(&out, 1, kPatienceMs);
    if (ready == 0) return make_error("cannot write records", "standard output: nobody reads it");
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0 || ::write(STDOUT_FILENO, rest.data(), length) != static_cast<ssize_t>(length))
      return system_error("cannot write records", "standard output", errno);
    *written += length;
  }
  return Ok{};
}

Status write_to_syslog(std::string_view lines, std::size_t* written) {
  for (*written = 0; *written < lines.size();) {
    const auto feed = lines.find('\n', *written);
    const std::string line(lines.substr(*written, feed - *written));
    ::syslog(LOG_DAEMON | LOG_INFO, "%s", line.c_str());
    *written = feed == std::string_view::npos ? lines.size() : feed + 1;
  }
  return Ok{};
}

}  // namespace egressclass::audit
