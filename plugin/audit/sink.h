// SPDX-License-Identifier: Apache-2.0
// Where records go: a queue with a bound, and a thread that empties it. Whoever puts a record in never waits for the
// disk or a reader. What finds no room, or cannot be written, is counted, and said in the stream as soon as it is open
// again.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "audit/record.h"
#include "util/result.h"

namespace egressclass::audit {

class Sink {
 public:
  /// Writes whole lines, and sets how many bytes of them were.
  using Write = std::function<Status(std::string_view lines, std::size_t* written)>;

  Sink(Write write, RecordWriter records, std::size_t max_bytes);
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  /// What is in the queue is still written.
  ~Sink();

  void put(std::string_view line);

  std::uint64_t written() const { return written_; }  ///< records
  std::uint64_t lost() const { return lost_; }
  /// Why it cannot write at the moment; empty: it can.
  std::string trouble() const;

 private:
  void run();
  void lose(std::uint64_t count, const std::string& reason);

  Write write_;
  RecordWriter records_;
  std::size_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable wakeup_;
  std::string queue_;
  bool stop_ = false;
  std::uint64_t unsaid_ = 0;  ///< lost, and not said yet
  std::string reason_;        ///< of the last of those
  std::string trouble_;
  std::atomic<std::uint64_t> written_ = 0;
  std::atomic<std::uint64_t> lost_ = 0;
  std::thread thread_;  // the last: it uses the others
};

/// For Sink: standard output, which may be a pipe that nobody reads, and the system's log.
Status write_to_stdout(std::string_view lines, std::size_t* written);
Status write_to_syslog(std::string_view lines, std::size_t* written);

}  // namespace egressclass::audit
