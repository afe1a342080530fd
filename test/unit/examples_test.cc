// SPDX-License-Identifier: Apache-2.0
// What the documentation shows has to be true: every example is loaded. Run from the top of the repository.
#include <gtest/gtest.h>

#include "core/config.h"
#include "util/file.h"
#include "util/json.h"

namespace egressclass {
namespace {

std::string content(const std::string& path) {
  auto text = read_file(path, kMaxConfigBytes);
  return text && *text ? **text : std::string();
}

/// The text of every ```json block.
std::vector<std::string> json_blocks(const std::string& markdown) {
  const std::string opening = "```json\n";
  std::vector<std::string> blocks;
  for (std::size_t at = 0; (at = markdown.find(opening, at)) != std::string::npos;) {
    at += opening.size();
    const std::size_t end = markdown.find("```", at);
    blocks.push_back(markdown.substr(at, end - at));
    at = end;
  }
  return blocks;
}

void expect_valid(const std::string& text, const std::string& where) {
  std::vector<ConfigProblem> problems;
  EXPECT_TRUE(parse_config(text, &problems)) << format_problems(where, problems);
}

TEST(Examples, ExampleConfigurationIsValid) { expect_valid(content("conf/config.json"), "conf/config.json"); }

TEST(Examples, ExampleConflistEndsWithThePlugin) {
  auto list = parse_json(content("conf/bridge.conflist"));
  ASSERT_TRUE(list);
  const Json& entry = list->at("plugins").back();
  EXPECT_EQ(entry.at("type"), "egressclass");
  EXPECT_EQ(entry.at("capabilities").at("io.kubernetes.cri.pod-annotations"), true);  // CNI-54
}

TEST(Examples, ConfigurationsInTheReadmeAreValid) {
  int configurations = 0;
  for (const std::string& block : json_blocks(content("README.md"))) {
    auto json = parse_json(block);
    ASSERT_TRUE(json) << block;
    if (!json->contains("classes")) continue;
    ++configurations;
    expect_valid(block, "README.md");
  }
  EXPECT_GE(configurations, 2);
}

}  // namespace
}  // namespace egressclass
