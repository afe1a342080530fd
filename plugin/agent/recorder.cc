// SPDX-License-Identifier: Apache-2.0
#include "agent/recorder.h"

#include <algorithm>
#include <chrono>

#include "core/selection.h"
#include "util/clock.h"

namespace egressclass::agent {
namespace {

constexpr std::size_t kQueueBytes = 12UL << 20U;  // half a second of 20 000 flows a second, which start and end
constexpr std::chrono::seconds kKeepInterval(1);

audit::Bounds bounds_of(const AuditConfig& config) {
  return {.file_bytes = static_cast<std::uint64_t>(config.file_megabytes) << 20U,
          .total_bytes = static_cast<std::uint64_t>(config.max_megabytes) << 20U,
          .max_age_ns = static_cast<std::int64_t>(config.max_days) * 24 * 3600 * kNsPerSecond};
}

}  // namespace

Recorder::Recorder(const AuditConfig& config, const std::string& node)
    : config_(config), bounds_(bounds_of(config)), writer_(node), file_(config.folder, bounds_) {
  const auto add = [&](audit::Sink::Write write) {
    sinks_.push_back(std::make_unique<audit::Sink>(std::move(write), writer_, kQueueBytes));
  };
  add([this](std::string_view lines, std::size_t* written) { return file_.append(lines, written); });
  if (config.to_stdout) add(audit::write_to_stdout);
  if (config.to_syslog) add(audit::write_to_syslog);
  keeper_ = std::thread([this] { keep_files(); });
}

Recorder::~Recorder() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  wakeup_.notify_one();
  keeper_.join();
  sinks_.clear();
  file_.sync();
}

bool Recorder::is_wanted(const audit::FlowRecord& record) const {
  const auto any = [](const auto& list, const auto& test) { return list.empty() || std::ranges::any_of(list, test); };
  static const Pod unknown;
  const Pod& pod = record.pod == nullptr ? unknown : record.pod->pod();
  return any(config_.classes, [&](const std::string& p) { return matches_pattern(p, record.class_name); }) &&
         any(config_.pods, [&](const SelectRule& rule) { return matches(rule, pod); }) &&
         any(config_.destinations, [&](const Prefix& p) { return p.contains(record.tuple.destination); });
}

void Recorder::record(const audit::FlowRecord& record) {
  if (is_wanted(record)) put(writer_.flow(record));
}

void Recorder::record_agent(const char* state) { put(writer_.agent(state, now_ns())); }

void Recorder::record_unseen(std::uint64_t count, const std::string& reason) {
  put(writer_.lost(count, "events", reason, now_ns()));
}

void Recorder::put(const std::string& line) {
  for (const auto& sink : sinks_) sink->put(line);
}

Recorder::Numbers Recorder::numbers() const {
  Numbers numbers;
  for (const auto& sink : sinks_) {
    numbers.written += sink->written();
    numbers.lost += sink->lost();
    if (numbers.trouble.empty()) numbers.trouble = sink->trouble();
  }
  const std::scoped_lock lock(mutex_);
  if (numbers.trouble.empty()) numbers.trouble = trouble_;
  return numbers;
}

void Recorder::keep_files() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    const auto kept = audit::compress_full(config_.folder, bounds_);
    lock.lock();
    trouble_ = kept ? "" : kept.error().details;
    wakeup_.wait_for(lock, kKeepInterval, [&] { return stop_; });
  }
}

}  // namespace egressclass::agent
