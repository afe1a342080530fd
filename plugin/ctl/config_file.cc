// SPDX-License-Identifier: Apache-2.0
#include "ctl/config_file.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "ctl/commands.h"
#include "util/file.h"

namespace egressclass::ctl {

std::variant<ConfigFile, int> read_config_file(const std::string& path) {
  auto text = read_file(path, kMaxConfigBytes);
  if (!text) {
    fail(text.error());
    return kBadConfig;
  }
  if (!*text) return refuse(path, {{"", "", "no such file"}});
  std::vector<ConfigProblem> problems;
  auto config = parse_config(**text, &problems);
  if (!config) return refuse(path, problems);
  return ConfigFile{std::move(**text), std::move(*config)};
}

int refuse(const std::string& path, const std::vector<ConfigProblem>& problems) {
  const bool passes = std::ranges::all_of(problems, &ConfigProblem::passes);
  std::fprintf(
      stderr, "%segressctl: nothing was changed%s\n", format_problems(path, problems).c_str(),
      passes ? ": this waits for what is to come, or to go; run it again then (egressclass.service does so)" : "");
  return passes ? kNotYet : kBadConfig;
}

}  // namespace egressclass::ctl
