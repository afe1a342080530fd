// SPDX-License-Identifier: Apache-2.0
#include "audit/search.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <optional>
#include <span>
#include <string_view>

#include "audit/files.h"
#include "audit/index.h"
#include "util/clock.h"
#include "util/fd.h"

namespace egressclass::audit {
namespace {

/// A file's bytes, read only, for as long as this lives.
class Mapped {
 public:
  static Result<Mapped> open(const std::string& path) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0) return system_error("cannot open", path, errno);
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return Mapped(nullptr, 0);
    void* bytes = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (bytes == MAP_FAILED) return system_error("cannot map", path, errno);
    return Mapped(bytes, size);
  }
  Mapped(Mapped&& other) noexcept : bytes_(std::exchange(other.bytes_, nullptr)), size_(other.size_) {}
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  Mapped& operator=(Mapped&&) = delete;
  ~Mapped() {
    if (bytes_ != nullptr) ::munmap(bytes_, size_);
  }

  std::string_view text() const { return {static_cast<const char*>(bytes_), size_}; }
  std::span<const Entry> entries() const { return {static_cast<const Entry*>(bytes_), size_ / sizeof(Entry)}; }

 private:
  Mapped(void* bytes, std::size_t size) : bytes_(bytes), size_(size) {}
  void* bytes_;
  std::size_t size_;
};

/// A record that may matter, and where its text is.
struct Found {
  Entry entry;
  const RecordFile* file;
  std::string line;  ///< of a file without an index
};

/// All records of the endpoint, and of egressd's starts.
class Finder {
 public:
  explicit Finder(const Endpoint& endpoint)
      : wanted_(endpoint_hash(endpoint.ip, endpoint.port, endpoint.protocol)),
        needle_(R"("egressIP":")" + endpoint.ip.str() + R"(","egressPort":)" + std::to_string(endpoint.port) + ",") {}

  Status look_into(const RecordFile& file) {
    auto mapped = Mapped::open(file.index.empty() ? file.path : file.index);
    if (!mapped) return mapped.error();
    if (file.index.empty()) {
      scan(mapped->text(), needle_, file);
      scan(mapped->text(), R"("event":"agent")", file);
    } else {
      take(mapped->entries(), kAgentEndpoint, file);
      take(mapped->entries(), wanted_, file);
    }
    return Ok{};
  }

  std::vector<Found>& records() { return records_; }
  /// When egressd began: whatever was open then was recorded anew. In order.
  const std::vector<std::uint32_t>& agent_starts() {
    std::ranges::sort(agent_starts_);
    return agent_starts_;
  }

 private:
  void note(const Entry& entry, const RecordFile& file, std::string_view line) {
    if (entry.endpoint == kAgentEndpoint)
      agent_starts_.push_back(entry.start);
    else if (entry.endpoint == wanted_)
      records_.push_back({entry, &file, std::string(line)});
  }

  void take(std::span<const Entry> entries, std::uint64_t endpoint, const RecordFile& file) {
    for (auto it = std::ranges::lower_bound(entries, endpoint, {}, &Entry::endpoint);
         it != entries.end() && it->endpoint == endpoint; ++it)
      note(*it, file, "");
  }

  void scan(std::string_view text, std::string_view needle, const RecordFile& file) {
    for (std::size_t at = 0; (at = text.find(needle, at)) != std::string_view::npos;) {
      const auto before = text.rfind('\n', at);
      const auto begin = before == std::string_view::npos ? 0 : before + 1;
      const auto end = text.find('\n', at);
      if (end == std::string_view::npos) return;  // being written
      const std::string_view line = text.substr(begin, end - begin);
      if (const auto entry = entry_of(line)) note(*entry, file, line);
      at = end;
    }
  }

  std::uint64_t wanted_;
  std::string needle_;
  std::vector<Found> records_;
  std::vector<std::uint32_t> agent_starts_;
};

/// When some flow had the endpoint, to a second.
struct Interval {
  const Found* record;
  std::uint32_t start;
  std::uint32_t end;  ///< kStill: it has it still
  bool end_known;
};

constexpr std::uint32_t kStill = UINT32_MAX;

/// Of the same flow. Conntrack gives an id again, though only to the same tuple. The time of a start record is the
/// program's, a little later than conntrack's.
bool ends(const Entry& end, const Entry& open) { return end.time >= open.time && end.start <= open.start + 1; }

/// One for each end; and one for what was open and has no end. The latter went unseen before egressd's next start, else
/// it would have been recorded anew then.
void add_intervals(const std::vector<const Found*>& of_flow, const std::vector<std::uint32_t>& agent_starts,
                   std::vector<Interval>& intervals) {
  const Found* open = nullptr;
  for (const Found* found : of_flow) {
    const Entry& entry = found->entry;
    if (entry.open == 0)
      intervals.push_back({found, entry.start, entry.time, true});
    else if (std::ranges::none_of(of_flow,
                                  [&](const Found* f) { return f->entry.open == 0 && ends(f->entry, entry); }) &&
             (open == nullptr || entry.time > open->entry.time))
      open = found;
  }
  if (open == nullptr) return;
  const auto next = std::ranges::upper_bound(agent_starts, open->entry.time);
  intervals.push_back({open, open->entry.start, next == agent_starts.end() ? kStill : *next, false});
}

std::vector<Interval> intervals_of(const std::vector<Found>& records, const std::vector<std::uint32_t>& agent_starts) {
  std::map<std::uint64_t, std::vector<const Found*>> flows;
  for (const Found& found : records) flows[found.entry.flow].push_back(&found);
  std::vector<Interval> intervals;
  for (const auto& [flow, of_flow] : flows) add_intervals(of_flow, agent_starts, intervals);
  return intervals;
}

std::optional<Json> record_of(const Found& found) {
  std::string member;
  std::string_view line = found.line;
  if (line.empty()) {
    auto text = read_member(found.file->path, found.entry.offset);
    if (!text) return {};
    member = std::move(*text);
    char id[32];
    std::snprintf(id, sizeof(id), R"("flow":"%016)" PRIx64 "\"", found.entry.flow);
    for (std::size_t at = 0; (at = member.find(id, at)) != std::string::npos;) {
      const auto before = member.rfind('\n', at);
      const auto begin = before == std::string::npos ? 0 : before + 1;
      const auto end = member.find('\n', at);
      line = std::string_view(member).substr(begin, end - begin);
      auto entry = entry_of(line);
      if (entry) entry->offset = found.entry.offset;
      if (entry == found.entry) break;
      line = {};
      at = end;
    }
  }
  auto json = parse_json(std::string(line));
  return json && json->is_object() ? std::optional<Json>(std::move(*json)) : std::nullopt;
}

std::optional<std::int64_t> time_member(const Json& record, const char* key) {
  const Json* member = find_member(record, key);
  return member != nullptr && member->is_string() ? parse_time(member->get<std::string>(), 0) : std::nullopt;
}

std::optional<Holder> holder_of(const Interval& interval) {
  auto record = record_of(*interval.record);
  if (!record) return {};
  const auto time = time_member(*record, "time");
  const auto start = time_member(*record, "start");
  Holder holder{.record = std::move(*record),
                .start_ns = start ? *start : time.value_or(0),
                .end_ns = kStillOpen,
                .end_known = interval.end_known};
  if (interval.end_known)
    holder.end_ns = time.value_or(0);
  else if (interval.end != kStill)
    holder.end_ns = interval.end * kNsPerSecond;
  return holder;
}

Result<Holders> find_once(const std::string& folder, const Endpoint& endpoint, std::int64_t time_ns) {
  auto files = list_record_files(folder);
  if (!files) return files.error();
  Finder finder(endpoint);
  for (const RecordFile& file : *files)
    if (auto looked = finder.look_into(file); !looked) return looked.error();
  const auto intervals = intervals_of(finder.records(), finder.agent_starts());

  Holders holders;
  const auto add = [](std::vector<Holder>& list, const Interval* interval) {
    if (interval == nullptr) return;
    if (auto holder = holder_of(*interval)) list.push_back(std::move(*holder));
  };
  const std::int64_t second = time_ns / kNsPerSecond;
  const Interval* before = nullptr;
  const Interval* after = nullptr;
  for (const Interval& interval : intervals) {
    if (interval.start > second) {
      if (after == nullptr || interval.start < after->start) after = &interval;
    } else if (interval.end != kStill && interval.end < second) {
      if (before == nullptr || interval.end > before->end) before = &interval;
    } else {
      add(holders.then, &interval);
    }
  }
  // The records of a reused port often share a second: those that had it at the very time come first.
  std::ranges::stable_sort(holders.then, {},
                           [&](const Holder& h) { return h.start_ns > time_ns || h.end_ns < time_ns; });
  if (holders.then.empty()) {
    add(holders.near, before);
    add(holders.near, after);
  }
  return holders;
}

}  // namespace

Result<Holders> find_holders(const std::string& folder, const Endpoint& endpoint, std::int64_t time_ns) {
  auto found = find_once(folder, endpoint, time_ns);
  // A file that was renamed, or compressed, between the listing and the look.
  for (int tries = 0; !found && tries < 3; ++tries) found = find_once(folder, endpoint, time_ns);
  return found;
}

}  // namespace egressclass::audit
