// SPDX-License-Identifier: Apache-2.0
// What users may write: the first line is the pod's namespace, the second its name, and the rest, if there is any, the
// annotation. Against a second reading of the rules. CNI-55.
#include <vector>

#include "cni/codes.h"
#include "core/selection.h"
#include "fuzz.h"

namespace egressclass::fuzz {
namespace {

constexpr const char* kClasses = R"({
  "classes": [
    {"name": "billing", "select": [{"namespaces": ["billing"]}, {"namespaces": ["shop"], "pods": ["checkout-*"]}],
     "destinations": ["0.0.0.0/0"], "gateways": [{"address": "192.0.2.21"}], "egressIPs": ["203.0.113.7"]},
    {"name": "partner", "namespaces": ["shop", "crm-?"], "select": [{"pods": ["*-a*b?c*"]}],
     "destinations": ["198.51.100.0/24"], "gateways": [{"address": "192.0.2.21"}], "egressIPs": ["203.0.113.8"]},
    {"name": "a.b-c", "namespaces": ["*"], "select": [{"namespaces": ["?"], "pods": ["**", "x*"]}],
     "destinations": ["10.0.0.0/8"], "gateways": [{"address": "192.0.2.21"}], "egressIPs": ["203.0.113.9"]}
  ],
  "nodes": ["192.0.2.11", "192.0.2.21"]
})";

Config configuration(bool with_default, bool honour) {
  std::vector<ConfigProblem> problems;
  auto config = parse_config(kClasses, &problems);
  require(config.has_value(), "the target's configuration is good", format_problems("", problems));
  config->classes.back().is_default = with_default;
  config->annotations = honour;
  return *config;
}

/// By a table of all prefixes: reaches[t] is whether the pattern so far matches the first t characters.
bool matches(const std::string& pattern, const std::string& text) {
  std::vector<bool> reaches(text.size() + 1, false);
  reaches[0] = true;
  for (const char p : pattern) {
    std::vector<bool> next(text.size() + 1, false);
    for (std::size_t t = 0; t <= text.size(); ++t)
      next[t] =
          p == '*' ? reaches[t] || (t > 0 && next[t - 1]) : t > 0 && reaches[t - 1] && (p == '?' || p == text[t - 1]);
    reaches = std::move(next);
  }
  return reaches.back();
}

bool any_matches(const std::vector<std::string>& patterns, const std::string& text) {
  return patterns.empty() || std::ranges::any_of(patterns, [&](const auto& pattern) { return matches(pattern, text); });
}

/// The name of the class; empty for none, and the code of the error as text.
std::string expected(const Config& config, const Pod& pod) {
  if (config.annotations && pod.annotation) {
    for (const ClassConfig& c : config.classes)
      if (c.name == *pod.annotation)
        return any_matches(c.entitled, pod.name_space) ? c.name : std::to_string(codes::kNotEntitled);
    return std::to_string(codes::kUnknownClass);
  }
  for (const ClassConfig& c : config.classes)
    for (const SelectRule& rule : c.select)
      if (any_matches(rule.namespaces, pod.name_space) && any_matches(rule.pods, pod.name)) return c.name;
  for (const ClassConfig& c : config.classes)
    if (c.is_default) return c.name;
  return {};
}

}  // namespace
}  // namespace egressclass::fuzz

FUZZ_TARGET(input) {
  using namespace egressclass;
  using namespace egressclass::fuzz;
  Pod pod;
  pod.name_space = take(&input, '\n');
  const bool has_annotation = input.find('\n') != std::string_view::npos;
  pod.name = take(&input, '\n');
  if (has_annotation) pod.annotation = std::string(input);

  static const std::vector<Config> configs = {configuration(false, true), configuration(true, true),
                                              configuration(true, false)};
  for (const Config& config : configs) {
    const auto chosen = choose_class(config, pod, kConfigPath);
    const std::string wanted = expected(config, pod);
    if (!chosen) {
      require(std::to_string(chosen.error().code) == wanted, "an error is the one of the rules", wanted);
      require_cni_error(chosen.error(), "1.0.0");
    } else if (chosen->chosen == nullptr) {
      require(wanted.empty(), "no class is what the rules give", wanted);
    } else {
      require(chosen->chosen->name == wanted, "the class is the one of the rules", wanted);
    }
  }
}
