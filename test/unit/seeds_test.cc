// SPDX-License-Identifier: Apache-2.0
// The fuzzer's configurations start from both sides of the border only if its seeds are what their names say: fault-*
// have one mistake, bad-* have more or are no configuration at all, the others are good. Run from the top of the
// repository.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "core/config.h"
#include "util/file.h"

namespace egressclass {
namespace {

TEST(Seeds, OfTheConfigurationFuzzerAreWhatTheirNamesSay) {
  int seeds = 0;
  for (const auto& entry : std::filesystem::directory_iterator("test/fuzz/corpus/config")) {
    ++seeds;
    const std::string name = entry.path().filename().string();
    const auto text = read_file(entry.path().string(), kMaxConfigBytes);
    ASSERT_TRUE(text && *text) << name;
    std::vector<ConfigProblem> problems;
    const bool good = parse_config(**text, &problems).has_value();
    const std::string shown = format_problems(name, problems);
    EXPECT_EQ(good, !name.starts_with("fault-") && !name.starts_with("bad-")) << shown;
    EXPECT_TRUE(!name.starts_with("fault-") || problems.size() == 1) << shown;
  }
  EXPECT_GE(seeds, 60);
}

}  // namespace
}  // namespace egressclass
