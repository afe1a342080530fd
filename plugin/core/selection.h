// SPDX-License-Identifier: Apache-2.0
// Which class a pod gets: annotation, then `select` in file order, then the default class, else none.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "util/result.h"

namespace egressclass {

inline constexpr const char* kClassAnnotation = "egressclass.io/class";

/// What a runtime tells about a pod. Namespace and name are empty when it told nothing
/// (a plain containerd host): then only patterns that match the empty text, as "*", select the pod.
struct Pod {
  std::string name_space;
  std::string name;
  std::string uid;
  std::optional<std::string> annotation;  ///< value of egressclass.io/class
  bool operator==(const Pod&) const = default;
};

struct Choice {
  const ClassConfig* chosen = nullptr;  ///< nullptr: no class
  std::string by;                       ///< what chose it, as "classes[2].select[0]"; empty: nothing did
};

/// A pod that names an unknown class, or one that its namespace may not use, is an error (codes kUnknownClass,
/// kNotEntitled) that names class and `config_file`: fail closed.
Result<Choice> choose_class(const Config& config, const Pod& pod, const std::string& config_file);

bool matches(const SelectRule& rule, const Pod& pod);

/// `*` stands for any text, `?` for any one character, everything else for itself.
bool matches_pattern(const std::string& pattern, const std::string& text);

}  // namespace egressclass
