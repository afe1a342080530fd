// SPDX-License-Identifier: Apache-2.0
#include "util/spare_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "util/file.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

class SpareFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "egressclass-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "state/f";
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string content(const std::string& path) {
    auto text = read_file(path, 1U << 20U);
    return text ? text->value_or("(none)") : text.error().details;
  }
  static struct stat look(const std::string& path) {
    struct stat info {};
    EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
    return info;
  }

  fs::path folder_;
  std::string path_;
};

TEST_F(SpareFile, EachContentTakesThePlaceOfTheOneBefore) {
  for (const std::string& text : {std::string("one"), std::string(9000, 'x'), std::string(), std::string("four")}) {
    ASSERT_TRUE(write_reserved(path_, text, 0600));
    EXPECT_EQ(content(path_), text);
    EXPECT_EQ(look(path_).st_mode & 07777U, 0600U);
  }
  EXPECT_EQ(content(spare_of(path_)), "");  // the third
}

TEST_F(SpareFile, ReservingTakesRoomTwiceAndChangesNothing) {
  constexpr std::size_t kBytes = 100'000;
  ASSERT_TRUE(write_reserved(path_, "one"));
  const auto before = look(path_);
  ASSERT_TRUE(reserve_file(path_, kBytes));
  EXPECT_EQ(content(path_), "one");
  EXPECT_EQ(look(path_).st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  EXPECT_EQ(look(path_).st_ino, before.st_ino);
  for (const std::string& file : {path_, spare_of(path_)}) EXPECT_GE(look(file).st_blocks * 512U, kBytes);
  ASSERT_TRUE(write_reserved(path_, "two"));
  EXPECT_EQ(look(spare_of(path_)).st_ino, before.st_ino);
  for (const std::string& file : {path_, spare_of(path_)}) EXPECT_GE(look(file).st_blocks * 512U, kBytes);
}

TEST_F(SpareFile, ReservingWhatDoesNotFitIsAnErrorThatSaysSo) {
  const auto reserved = reserve_file(path_, std::size_t{1} << 50U);
  ASSERT_FALSE(reserved);
  EXPECT_NE(reserved.error().details.find(".f.spare"), std::string::npos) << reserved.error().details;
}

TEST_F(SpareFile, AFolderThatCannotBeMadeIsAnError) {
  ASSERT_TRUE(write_file_atomic(folder_ / "state", "a file"));
  EXPECT_FALSE(reserve_file(path_, 1));
  EXPECT_FALSE(write_reserved(path_, "x"));
}

}  // namespace
}  // namespace egressclass
