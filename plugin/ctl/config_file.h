// SPDX-License-Identifier: Apache-2.0
// The configuration file of a command, and what is said when it cannot be in force.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "core/config.h"

namespace egressclass::ctl {

struct ConfigFile {
  std::string text;
  Config config;
};

/// Reads and validates. Otherwise the exit code, after everything was said.
std::variant<ConfigFile, int> read_config_file(const std::string& path);

/// Says what is wrong and returns the exit code: kNotYet when all of it passes by itself, else kBadConfig.
int refuse(const std::string& path, const std::vector<ConfigProblem>& problems);

}  // namespace egressclass::ctl
