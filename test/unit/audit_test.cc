// SPDX-License-Identifier: Apache-2.0
// The audit's records, files, and the search in them.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>

#include "audit/files.h"
#include "audit/index.h"
#include "audit/record.h"
#include "audit/search.h"
#include "audit/sink.h"
#include "util/clock.h"
#include "util/file.h"

namespace egressclass::audit {
namespace {

constexpr std::int64_t kNoon = 1'795'780'800 * kNsPerSecond;
constexpr std::int64_t kSecond = kNsPerSecond;

const Ip kEgress = *Ip::parse("203.0.113.7");

FlowRecord flow(FlowEvent event, std::uint64_t id, std::uint16_t egress_port, std::int64_t time_ns,
                std::int64_t start_ns = 0) {
  FlowRecord record;
  record.event = event;
  record.id = id;
  record.time_ns = time_ns;
  record.start_ns = start_ns;
  record.class_name = "web";
  record.gateway = "192.0.2.21";
  record.tuple = {.source = *Ip::parse("10.244.1.5"),
                  .destination = *Ip::parse("198.51.100.10"),
                  .egress = kEgress,
                  .source_port = 40000,
                  .destination_port = 443,
                  .egress_port = egress_port,
                  .protocol = IPPROTO_TCP};
  record.reason = "closed";
  record.out = Traffic{3, 180};
  record.in = Traffic{2, 120};
  return record;
}

/// A folder for one test.
class Audit : public testing::Test {
 protected:
  ~Audit() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& lines) {
    std::size_t written = 0;
    ASSERT_TRUE(current_.append(lines, &written));
    ASSERT_EQ(written, lines.size());
  }
  /// As if the file were full, and compressed.
  void seal() {
    std::filesystem::rename(folder_ + "/audit.jsonl",
                            folder_ + "/audit-" + format_time(kNoon + ++sealed_ * kSecond) + ".jsonl");
    ASSERT_TRUE(compress_full(folder_, {}));
    current_ = CurrentFile(folder_, {});
  }
  Holders find(std::int64_t time_ns, std::uint16_t port = 50000) {
    auto found = find_holders(folder_, {kEgress, port, IPPROTO_TCP}, time_ns);
    EXPECT_TRUE(found) << (found ? "" : found.error().details);
    return found ? std::move(*found) : Holders{};
  }
  static std::string flow_of(const Holder& holder) { return holder.record.at("flow").get<std::string>().substr(14); }

  static std::string make_folder() {
    std::string name = testing::TempDir() + "audit-XXXXXX";
    return ::mkdtemp(name.data());
  }

  std::string folder_ = make_folder();
  CurrentFile current_{folder_, {}};
  RecordWriter writer_{"node \"1\""};
  int sealed_ = 0;
};

TEST_F(Audit, ARecordIsOneLineOfJson) {
  const Identity pod({.name_space = "a\nb", .name = "x\"},\"egressIP\":\"1.2.3.4", .uid = "\xff", .annotation = {}},
                     "c1");
  FlowRecord record = flow(FlowEvent::kEnd, 0xabc, 50000, kNoon + 1500 * (kSecond / 1000), kNoon);
  record.pod = &pod;
  const std::string line = writer_.flow(record);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  const auto json = parse_json(line);
  ASSERT_TRUE(json);
  EXPECT_EQ(json->at("node"), "node \"1\"");
  EXPECT_EQ(json->at("pod").at("namespace"), "a\nb");
  EXPECT_EQ(json->at("flow"), "0000000000000abc");
  EXPECT_EQ(json->at("bytesOut"), 180);
  EXPECT_EQ(json->at("seconds"), 1.5);
  const auto entry = entry_of(line);
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->endpoint, endpoint_hash(kEgress, 50000, IPPROTO_TCP)) << "a name that looks like a key is none";
  EXPECT_EQ(entry->start, kNoon / kSecond);
  EXPECT_EQ(entry->time, kNoon / kSecond + 1);
  EXPECT_EQ(entry->open, 0U);
}

TEST_F(Audit, WhatIsUnknownIsNull) {
  FlowRecord record = flow(FlowEvent::kStart, 1, 50000, kNoon);
  record.class_name.clear();
  const auto json = parse_json(writer_.flow(record));
  ASSERT_TRUE(json);
  EXPECT_TRUE(json->at("pod").is_null());
  EXPECT_TRUE(json->at("class").is_null());
  EXPECT_FALSE(json->contains("start"));
  EXPECT_FALSE(json->contains("reason"));
}

TEST_F(Audit, OnlyFlowsAndStartsOfTheAgentAreIndexed) {
  EXPECT_TRUE(entry_of(writer_.agent("started", kNoon)));
  EXPECT_FALSE(entry_of(writer_.agent("stopped", kNoon)));
  EXPECT_FALSE(entry_of(writer_.lost(3, "records", "the disk is full", kNoon)));
  EXPECT_FALSE(entry_of("{}"));
  EXPECT_FALSE(entry_of(""));
}

TEST_F(Audit, EndpointsDifferInEachPart) {
  const auto hash = endpoint_hash(kEgress, 50000, IPPROTO_TCP);
  EXPECT_NE(hash, endpoint_hash(kEgress, 50001, IPPROTO_TCP));
  EXPECT_NE(hash, endpoint_hash(kEgress, 50000, IPPROTO_UDP));
  EXPECT_NE(hash, endpoint_hash(*Ip::parse("203.0.113.8"), 50000, IPPROTO_TCP));
}

TEST_F(Audit, WhatACrashCutOffStaysALineOfItsOwn) {
  write(writer_.agent("started", now_ns()));  // not a day old: that would be a reason for another file
  std::ofstream(folder_ + "/audit.jsonl", std::ios::app) << R"({"time":"2026-)";
  current_ = CurrentFile(folder_, {});
  write(writer_.agent("stopped", kNoon));
  std::ifstream file(folder_ + "/audit.jsonl");
  std::string line;
  std::vector<bool> whole;
  while (std::getline(file, line)) whole.push_back(static_cast<bool>(parse_json(line)));
  EXPECT_EQ(whole, (std::vector<bool>{true, false, true}));
}

TEST_F(Audit, AFullFileIsRenamedCompressedAndRead) {
  current_ = CurrentFile(folder_, {.file_bytes = 1 << 20, .total_bytes = 1 << 30});
  std::string all;
  for (int i = 0; i < 4000; ++i) {
    const std::string line =
        writer_.flow(flow(FlowEvent::kEnd, static_cast<std::uint64_t>(i), 50000, kNoon + i * kSecond, kNoon));
    write(line);
    all += line;
  }
  ASSERT_TRUE(compress_full(folder_, {.file_bytes = 1 << 20, .total_bytes = 1 << 30}));
  auto files = list_record_files(folder_);
  ASSERT_TRUE(files);
  ASSERT_GE(files->size(), 2U);
  std::string read;
  for (const RecordFile& file : *files) {
    if (file.index.empty()) {
      read += **read_file(file.path, 1U << 30U);
      continue;
    }
    auto bytes = *read_file(file.path, 1U << 30U);
    EXPECT_LT(bytes->size(), 300'000U);
    for (std::size_t at = 0; at < bytes->size();) {  // each member begins with gzip's magic
      auto member = read_member(file.path, at);
      ASSERT_TRUE(member) << member.error().details;
      EXPECT_TRUE(member->ends_with('\n'));
      read += *member;
      at = bytes->find("\x1f\x8b\x08", at + 3);
    }
    struct stat status {};
    ASSERT_EQ(::stat(file.path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777U, 0640U);
  }
  EXPECT_EQ(read, all);
}

TEST_F(Audit, ACompressionThatWasCutOffIsDoneAgain) {
  write(writer_.flow(flow(FlowEvent::kEnd, 1, 50000, kNoon + 5 * kSecond, kNoon)));
  const std::string stem = folder_ + "/audit-" + format_time(kNoon) + ".jsonl";
  std::filesystem::rename(folder_ + "/audit.jsonl", stem);
  std::ofstream(stem.substr(0, stem.size() - 6) + ".jsonl.idx") << "half";  // the index comes first
  EXPECT_EQ(find(kNoon + kSecond).then.size(), 1U);
  ASSERT_TRUE(compress_full(folder_, {}));
  EXPECT_FALSE(std::filesystem::exists(stem));
  EXPECT_EQ(find(kNoon + kSecond).then.size(), 1U);
}

TEST_F(Audit, FindsWhoHadItThen) {
  for (const bool sealed : {false, true}) {
    std::filesystem::remove_all(folder_);
    current_ = CurrentFile(folder_, {});
    write(writer_.agent("started", kNoon));
    write(writer_.flow(flow(FlowEvent::kStart, 1, 50000, kNoon + 10 * kSecond)));
    write(writer_.flow(flow(FlowEvent::kEnd, 1, 50000, kNoon + 20 * kSecond, kNoon + 10 * kSecond)));
    write(writer_.flow(flow(FlowEvent::kStart, 2, 50000, kNoon + 30 * kSecond)));
    write(writer_.flow(flow(FlowEvent::kStart, 3, 50001, kNoon + 30 * kSecond)));
    if (sealed) seal();
    EXPECT_TRUE(find(kNoon + 5 * kSecond).then.empty());
    auto found = find(kNoon + 15 * kSecond).then;
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(flow_of(found[0]), "01");
    EXPECT_TRUE(found[0].end_known);
    EXPECT_EQ(found[0].end_ns, kNoon + 20 * kSecond);
    found = find(kNoon + 35 * kSecond).then;
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(flow_of(found[0]), "02");
    EXPECT_EQ(found[0].end_ns, kStillOpen);
    const auto between = find(kNoon + 25 * kSecond);
    EXPECT_TRUE(between.then.empty());
    ASSERT_EQ(between.near.size(), 2U);
    EXPECT_EQ(flow_of(between.near[0]), "01");
    EXPECT_EQ(flow_of(between.near[1]), "02");
  }
}

TEST_F(Audit, StartAndEndInDifferentFilesAreOneFlow) {
  write(writer_.flow(flow(FlowEvent::kStart, 1, 50000, kNoon)));
  seal();
  write(writer_.flow(flow(FlowEvent::kEnd, 1, 50000, kNoon + 60 * kSecond, kNoon)));
  seal();
  EXPECT_EQ(find(kNoon + 30 * kSecond).then.size(), 1U);
  EXPECT_TRUE(find(kNoon + 90 * kSecond).then.empty());
}

TEST_F(Audit, AnIdThatConntrackGaveTwiceIsTwoFlows) {
  for (const std::int64_t begin : {kNoon, kNoon + 100 * kSecond}) {
    write(writer_.flow(flow(FlowEvent::kStart, 1, 50000, begin)));
    write(writer_.flow(flow(FlowEvent::kEnd, 1, 50000, begin + 10 * kSecond, begin)));
  }
  write(writer_.flow(flow(FlowEvent::kStart, 1, 50000, kNoon + 200 * kSecond)));
  EXPECT_EQ(find(kNoon + 5 * kSecond).then.size(), 1U);
  EXPECT_TRUE(find(kNoon + 50 * kSecond).then.empty());
  EXPECT_EQ(find(kNoon + 105 * kSecond).then.size(), 1U);
  const auto last = find(kNoon + 300 * kSecond).then;
  ASSERT_EQ(last.size(), 1U);
  EXPECT_EQ(last[0].start_ns, kNoon + 200 * kSecond);
}

TEST_F(Audit, WhatWasNotResumedIsNotOpenAnyMore) {
  write(writer_.agent("started", kNoon));
  write(writer_.flow(flow(FlowEvent::kStart, 1, 50000, kNoon + 10 * kSecond)));
  write(writer_.flow(flow(FlowEvent::kStart, 2, 50001, kNoon + 10 * kSecond)));
  write(writer_.agent("started", kNoon + 100 * kSecond));
  write(writer_.flow(flow(FlowEvent::kResumed, 2, 50001, kNoon + 100 * kSecond, kNoon + 10 * kSecond)));
  auto found = find(kNoon + 50 * kSecond).then;
  ASSERT_EQ(found.size(), 1U);
  EXPECT_FALSE(found[0].end_known);
  EXPECT_EQ(found[0].end_ns, kNoon + 100 * kSecond);
  EXPECT_TRUE(find(kNoon + 150 * kSecond).then.empty());
  found = find(kNoon + 150 * kSecond, 50001).then;
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].end_ns, kStillOpen);
  EXPECT_EQ(found[0].start_ns, kNoon + 10 * kSecond);
}

TEST_F(Audit, NoRecordsAtAll) {
  EXPECT_TRUE(find(kNoon).then.empty());
  folder_ += "/missing";
  EXPECT_TRUE(find(kNoon).then.empty());
}

/// A writer that can be told to fail, or to wait.
struct Output {
  Status write(std::string_view lines, std::size_t* written) {
    std::unique_lock lock(mutex);
    ++calls;
    open.wait(lock, [&] { return !held; });
    if (broken) return make_error("cannot write", "the disk is full");
    *written = lines.size();
    text += lines;
    return Ok{};
  }
  void set(bool* flag, bool value) {
    const std::scoped_lock lock(mutex);
    *flag = value;
    open.notify_all();
  }
  std::mutex mutex;
  std::condition_variable open;
  bool held = false;
  bool broken = false;
  std::string text;
  std::atomic<int> calls = 0;
};

void wait_until(const std::function<bool()>& condition) {
  for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ASSERT_TRUE(condition());
}

TEST(AuditSink, SaysWhatItCouldNotWrite) {
  Output output;
  {
    Sink sink([&](std::string_view l, std::size_t* w) { return output.write(l, w); }, RecordWriter("n"), 1 << 20);
    output.set(&output.broken, true);
    sink.put("1\n2\n");
    wait_until([&] { return sink.lost() == 2; });
    EXPECT_EQ(sink.trouble(), "the disk is full");
    output.set(&output.broken, false);
    sink.put("3\n");
    wait_until([&] { return sink.written() == 1; });
    EXPECT_EQ(sink.trouble(), "");
    EXPECT_EQ(sink.lost(), 2U);
  }
  const auto first = parse_json(output.text.substr(0, output.text.find('\n')));
  ASSERT_TRUE(first);
  EXPECT_EQ(first->at("event"), "lost");
  EXPECT_EQ(first->at("count"), 2);
  EXPECT_EQ(first->at("reason"), "the disk is full");
  EXPECT_TRUE(output.text.ends_with("\n3\n"));
}

TEST(AuditSink, NeverWaitsForASlowWriter) {
  Output output;
  {
    Sink sink([&](std::string_view l, std::size_t* w) { return output.write(l, w); }, RecordWriter("n"), 100);
    output.set(&output.held, true);
    sink.put("first\n");
    wait_until([&] { return output.calls == 1; });
    for (int i = 0; i < 100; ++i) sink.put("0123456789\n");  // 9 of these fit
    EXPECT_EQ(sink.lost(), 91U);
    output.set(&output.held, false);
  }
  EXPECT_EQ(std::ranges::count(output.text, '\n'), 1 + 9 + 1);
}

}  // namespace
}  // namespace egressclass::audit
