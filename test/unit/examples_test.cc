// SPDX-License-Identifier: Apache-2.0
// What the documentation shows has to be true: every example is loaded. Run from the top of the repository.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "core/config.h"
#include "egressclass.h"
#include "util/file.h"
#include "util/json.h"

namespace egressclass {
namespace {

std::string content(const std::string& path) {
  auto text = read_file(path, kMaxConfigBytes);
  return text && *text ? **text : std::string();
}

/// Every text that has `opening` before it and `closing` behind it.
std::vector<std::string> texts_between(const std::string& text, const std::string& opening,
                                       const std::string& closing) {
  std::vector<std::string> found;
  for (std::size_t at = 0; (at = text.find(opening, at)) != std::string::npos;) {
    at += opening.size();
    const std::size_t end = text.find(closing, at);
    found.push_back(text.substr(at, end - at));
    at = end == std::string::npos ? end : end + closing.size();
  }
  return found;
}

/// The text of every ```json block.
std::vector<std::string> json_blocks(const std::string& markdown) {
  return texts_between(markdown, "```json\n", "```");
}

/// What the rows of the README's tables begin with.
std::vector<std::string> rows_of_readme() { return texts_between(content("README.md"), "\n| `", "` |"); }

Config expect_valid(const std::string& text, const std::string& where) {
  std::vector<ConfigProblem> problems;
  auto config = parse_config(text, &problems);
  EXPECT_TRUE(config) << format_problems(where, problems);
  return config.value_or(Config{});
}

/// The texts in README.md that are configurations.
std::vector<std::string> configurations_in_readme() {
  std::vector<std::string> texts;
  for (const std::string& block : json_blocks(content("README.md"))) {
    auto json = parse_json(block);
    EXPECT_TRUE(json) << block;
    if (json && json->contains("classes")) texts.push_back(block);
  }
  return texts;
}

std::vector<std::string> example_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator("conf/examples")) files.push_back(entry.path().string());
  return files;
}

/// The paths of all keys, as "classes[].gateways[].address". Of what may be a text or an object, the keys of the object
/// belong to the list.
void collect_keys(const Json& json, const std::string& path, std::set<std::string>* keys) {
  if (json.is_array())
    for (const Json& item : json) collect_keys(item, path + "[]", keys);
  if (!json.is_object()) return;
  for (const auto& [key, value] : json.items()) {
    const std::string at = std::string(path).append(path.empty() ? "" : ".").append(key);
    keys->insert(at);
    collect_keys(value, at, keys);
  }
}

TEST(Examples, ExampleConfigurationIsValid) { expect_valid(content("conf/config.json"), "conf/config.json"); }

TEST(Examples, EveryExampleIsValidAndInTheReadme) {
  const auto files = example_files();
  EXPECT_GE(files.size(), 5U);
  std::set<std::string> names;
  for (const std::string& file : files) {
    EXPECT_FALSE(expect_valid(content(file), file).classes.empty()) << file;
    names.insert(std::filesystem::path(file).filename().string());
  }
  std::set<std::string> rows;
  for (const std::string& row : rows_of_readme())
    if (row.ends_with(".json")) rows.insert(row);
  EXPECT_EQ(rows, names);
}

TEST(Examples, ExampleConflistEndsWithThePlugin) {
  auto list = parse_json(content("conf/bridge.conflist"));
  ASSERT_TRUE(list);
  const Json& entry = list->at("plugins").back();
  EXPECT_EQ(entry.at("type"), "egressclass");
  EXPECT_EQ(entry.at("capabilities").at("io.kubernetes.cri.pod-annotations"), true);  // CNI-54
}

TEST(Examples, ConfigurationsInTheReadmeAreValid) {
  const auto configurations = configurations_in_readme();
  EXPECT_GE(configurations.size(), 2U);
  for (const std::string& text : configurations) expect_valid(text, "README.md");
}

TEST(Examples, EveryKeyIsInTheReadmesReferenceAndInOneOfItsConfigurations) {
  std::set<std::string> used;
  for (const std::string& text : configurations_in_readme()) collect_keys(*parse_json(text), "", &used);
  std::set<std::string> documented;
  for (const std::string& row : rows_of_readme()) {
    documented.insert(row);
    const bool other_table = !row.starts_with("classes[]") && !row.starts_with("tunnel.") && !row.starts_with("audit");
    EXPECT_TRUE(other_table || used.contains(row)) << row << " is in no example";
  }
  // What the rows of `select` and `destinations` say in their own words.
  for (const char* key :
       {"classes[].select[].namespaces", "classes[].select[].pods", "classes[].destinations[].cidr",
        "classes[].destinations[].ports", "classes", "tunnel", "audit.only", "audit.only.pods[].namespaces"})
    documented.insert(key);
  for (const std::string& key : used) EXPECT_TRUE(documented.contains(key)) << key << " is in no row";

  // And none is known to the program alone.
  std::set<std::string> last_parts;
  for (const std::string& key : used) last_parts.insert(key.substr(key.rfind('.') + 1));
  for (const char* file : {"config.cc", "config_agent.cc", "config_gateways.cc", "config_values.cc"})
    for (const std::string& list : texts_between(content("plugin/core/" + std::string(file)), "is_object_of({", "})"))
      for (const std::string& key : texts_between(list, "\"", "\"")) EXPECT_TRUE(last_parts.contains(key)) << key;
}

TEST(Examples, EveryReasonAndEventIsInTheReadme) {
  std::vector<std::string> cells;
#define X(number, id, name) cells.emplace_back("`" name "`");
  EC_EVENTS(X)
#undef X
  for (const std::string& counter :
       texts_between(content("plugin/datapath/host_rules.cc") + content("plugin/datapath/gateway_rules.cc"),
                     "add counter inet egressclass ", "\n"))
    cells.push_back('`' + counter + "` (nft)");
  cells.emplace_back("`nat_exhausted` (kernel)");
  EXPECT_GE(cells.size(), 40U);
  const std::string readme = content("README.md");
  for (const std::string& cell : cells) {
    const auto follows = [&](const std::string& before) { return readme.find(before + cell) != std::string::npos; };
    EXPECT_TRUE(follows("\n| ") || follows(", ")) << cell;
  }
}

}  // namespace
}  // namespace egressclass
