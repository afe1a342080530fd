// SPDX-License-Identifier: Apache-2.0
#include "util/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "util/fd.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

class File : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "egressclass-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const char* name) const { return folder_ / name; }
  std::ptrdiff_t entries() const { return std::distance(fs::directory_iterator(folder_), fs::directory_iterator()); }

  fs::path folder_;
};

TEST_F(File, ReadsWhatWasWritten) {
  const std::string content = "one\ntwo" + std::string(1, '\0') + std::string(200000, 'x');
  ASSERT_TRUE(write_file_atomic(path("f"), content));
  const auto read = read_file(path("f"), content.size());
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, content);
}

TEST_F(File, AMissingFileIsNoErrorAndNoContent) {
  for (const char* name : {"missing", "missing/too"}) {
    const auto read = read_file(path(name), 10);
    ASSERT_TRUE(read);
    EXPECT_FALSE(*read);
  }
}

TEST_F(File, AnUnreadableFileIsAnError) {
  const auto read = read_file(folder_, 10);  // a folder opens, but does not read
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().details.find(folder_), std::string::npos);
}

TEST_F(File, RefusesMoreThanTheLimit) {
  ASSERT_TRUE(write_file_atomic(path("f"), "12345"));
  EXPECT_TRUE(read_file(path("f"), 5));
  const auto read = read_file(path("f"), 4);
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().details.find(path("f")), std::string::npos);
}

TEST_F(File, AnEndlessSourceIsRefusedNotRead) {
  const Fd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(read_all(zero.get(), "zero", 1U << 20U));
}

TEST_F(File, ReadsAPipeToItsEnd) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  ASSERT_EQ(::write(writer.get(), "abc", 3), 3);
  ASSERT_EQ(::write(writer.get(), "def", 3), 3);
  writer.reset();
  const auto read = read_all(reader.get(), "pipe", 6);
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, "abcdef");
}

TEST_F(File, ReplacesTheWholeFileAndLeavesNothingBeside) {
  ASSERT_TRUE(write_file_atomic(path("f"), "a longer first content"));
  ASSERT_TRUE(write_file_atomic(path("f"), "second", 0600));
  EXPECT_EQ(**read_file(path("f"), 100), "second");
  EXPECT_EQ(entries(), 1);
  struct stat st {};
  ASSERT_EQ(::stat(path("f").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777U, 0600U);
}

TEST_F(File, AReaderOfTheOldFileKeepsIt) {
  ASSERT_TRUE(write_file_atomic(path("f"), "old"));
  const Fd before(::open(path("f").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(write_file_atomic(path("f"), "new"));
  EXPECT_EQ(*read_all(before.get(), "f", 10), "old");
}

TEST_F(File, MakesMissingFolders) {
  ASSERT_TRUE(write_file_atomic(path("a/b/f"), "x"));
  EXPECT_EQ(**read_file(path("a/b/f"), 1), "x");
}

TEST_F(File, AFailedWriteLeavesNothing) {
  fs::create_directory(folder_ / "taken");
  const Status status = write_file_atomic(path("taken"), "x");  // a file cannot replace a folder
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().details.find(path("taken")), std::string::npos);
  EXPECT_EQ(entries(), 1);
}

}  // namespace
}  // namespace egressclass
