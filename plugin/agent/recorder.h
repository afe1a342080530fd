// SPDX-License-Identifier: Apache-2.0
// The audit of one node: files, standard output and the system's log, as the configuration wants them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "audit/files.h"
#include "audit/record.h"
#include "audit/sink.h"
#include "core/config.h"

namespace egressclass::agent {

class Recorder {
 public:
  Recorder(const AuditConfig& config, const std::string& node);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// If the configuration's "only" wants it.
  void record(const audit::FlowRecord& record);
  void record_agent(const char* state);
  /// Events of the kernel's that nobody saw.
  void record_unseen(std::uint64_t count, const std::string& reason);

  struct Numbers {
    std::uint64_t written = 0;
    std::uint64_t lost = 0;
    std::string trouble;  ///< why one of the outputs cannot be written at the moment; empty: all can
  };
  Numbers numbers() const;

 private:
  bool is_wanted(const audit::FlowRecord& record) const;
  void put(const std::string& line);
  void keep_files();

  AuditConfig config_;
  audit::Bounds bounds_;
  audit::RecordWriter writer_;
  audit::CurrentFile file_;
  std::vector<std::unique_ptr<audit::Sink>> sinks_;
  mutable std::mutex mutex_;
  std::condition_variable wakeup_;
  bool stop_ = false;
  std::string trouble_;
  std::thread keeper_;  ///< compresses and deletes files
};

}  // namespace egressclass::agent
