// SPDX-License-Identifier: Apache-2.0
#include "util/text.h"

#include <gtest/gtest.h>

namespace egressclass {
namespace {

TEST(Text, PrintableReplacesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a\x1b[31m\n\xff\x7f z"), "a?[31m??? z");
  EXPECT_EQ(printable("~ !"), "~ !");
}

TEST(Text, PrintableShortensAndShowsIt) {
  EXPECT_EQ(printable(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(printable(std::string(81, 'x')), std::string(77, 'x') + "...");
  EXPECT_EQ(printable("abcdef", 4), "a...");
}

TEST(Text, IfnameIsWhatTheKernelAccepts) {
  for (const std::string name : {"eth0", "a", "fifteen-chars-x", "eth0.100", "wan,1", "..."})
    EXPECT_TRUE(valid_ifname(name)) << name;
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("sixteen-chars-xx"),
                                  std::string("a/b"), std::string("a:b"), std::string("a b"), std::string("a\tb"),
                                  std::string("a\nb"), std::string("a\vb"), std::string("a\0b", 3)})
    EXPECT_FALSE(valid_ifname(name)) << name;
}

}  // namespace
}  // namespace egressclass
