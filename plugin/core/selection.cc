// SPDX-License-Identifier: Apache-2.0
#include "core/selection.h"

#include <algorithm>

#include "cni/codes.h"
#include "util/text.h"

namespace egressclass {
namespace {

constexpr std::size_t kMaxListed = 10;

bool matches_any(const std::vector<std::string>& patterns, const std::string& text) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&text](const std::string& pattern) { return matches_pattern(pattern, text); });
}

// "a, b, c and 12 more"
template <class Items, class Text>
std::string listed(const Items& items, Text text) {
  std::string list;
  for (std::size_t i = 0; i < std::min(items.size(), kMaxListed); ++i) list += (i == 0 ? "" : ", ") + text(items[i]);
  if (items.size() > kMaxListed) list += " and " + std::to_string(items.size() - kMaxListed) + " more";
  return list;
}

std::string describe(const Pod& pod) {
  if (pod.name.empty()) return "the pod";
  return "pod " + printable(pod.name_space) + '/' + printable(pod.name);
}

Error unknown_class(const Config& config, const Pod& pod, const std::string& config_file) {
  const std::string classes = listed(config.classes, [](const ClassConfig& c) { return c.name; });
  return Error{codes::kUnknownClass, "pod names egress class " + in_quotes(*pod.annotation) + ", which does not exist",
               "annotation " + std::string(kClassAnnotation) + " of " + describe(pod) + "; " + config_file +
                   (classes.empty() ? " has no classes" : " has the classes " + classes) +
                   "; correct the annotation, or add the class to that file and run `egressctl apply`"};
}

Error not_entitled(const ClassConfig& wanted, const Pod& pod, const std::string& config_file) {
  const std::string entitled = listed(wanted.entitled, [](const std::string& pattern) { return pattern; });
  return Error{codes::kNotEntitled,
               "namespace " + in_quotes(pod.name_space) + " may not use egress class " + in_quotes(wanted.name),
               "annotation " + std::string(kClassAnnotation) + " of " + describe(pod) + "; in " + config_file +
                   " the key \"namespaces\" of this class allows " + entitled +
                   "; correct the annotation, or add the namespace to that key"};
}

}  // namespace

Result<Choice> choose_class(const Config& config, const Pod& pod, const std::string& config_file) {
  if (config.annotations && pod.annotation) {
    const ClassConfig* named = config.find(*pod.annotation);
    if (named == nullptr) return unknown_class(config, pod, config_file);
    if (!named->entitled.empty() && !matches_any(named->entitled, pod.name_space))
      return not_entitled(*named, pod, config_file);
    return Choice{named, "annotation " + std::string(kClassAnnotation)};
  }
  for (std::size_t i = 0; i < config.classes.size(); ++i)
    for (std::size_t j = 0; j < config.classes[i].select.size(); ++j)
      if (matches(config.classes[i].select[j], pod))
        return Choice{&config.classes[i], "classes[" + std::to_string(i) + "].select[" + std::to_string(j) + "]"};
  for (std::size_t i = 0; i < config.classes.size(); ++i)
    if (config.classes[i].is_default) return Choice{&config.classes[i], "classes[" + std::to_string(i) + "].default"};
  return Choice{};
}

bool matches(const SelectRule& rule, const Pod& pod) {
  return (rule.namespaces.empty() || matches_any(rule.namespaces, pod.name_space)) &&
         (rule.pods.empty() || matches_any(rule.pods, pod.name));
}

bool matches_pattern(const std::string& pattern, const std::string& text) {
  // Greedy: only the last `*` ever has to take in more, so the time is at most the product of both lengths.
  std::size_t p = 0;
  std::size_t star = std::string::npos;
  std::size_t after_star = 0;  // where the text that is not the star's goes on
  for (std::size_t t = 0; t < text.size();) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after_star = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string::npos) {
      p = star + 1;
      t = ++after_star;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string::npos;
}

}  // namespace egressclass
