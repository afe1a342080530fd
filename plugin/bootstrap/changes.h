// SPDX-License-Identifier: Apache-2.0
// What has to change in a runtime's folder, as plain data: made from what was read, shown, or carried out.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bootstrap/conf_folder.h"
#include "util/result.h"

namespace egressclass {

struct Change {
  std::string path;
  std::optional<std::string> before;  // no value: no such file
  std::optional<std::string> after;
};

/// Where our entry is:
///   kEdit    in the list of the primary CNI
///   kOwn     in a list of our own, a copy of the primary's which the runtime finds first
///   kDropIn  in a file of our own that libcni 1.3 and newer adds to the list
enum class Way { kEdit, kOwn, kDropIn };

const char* way_name(Way way);

/// The way of a list or a drop-in of our own that is there. Else `otherwise`: an entry in the primary's list moves
/// then.
Way present_way(const Survey& survey, Way otherwise);

/// The way that serves the file: a single plugin's file has no place for an entry, so kEdit becomes kOwn.
Result<Way> way_for(const NetworkFile& primary, Way wanted);

struct Wanted {
  std::string entry;                // parse_entry() made it
  std::vector<std::string> spoken;  // versions of CNI that the plugin speaks; empty: not asked
};

/// The steps after which the runtime's network has our entry once, by `way` only. It has it after the first of them,
/// and at no time is the network without a valid configuration. No steps: all is as it should be.
Result<std::vector<Change>> plan_install(const Survey& survey, Way way, const Wanted& wanted);

/// The steps after which nothing of ours is in the folder.
std::vector<Change> plan_uninstall(const Survey& survey);

/// As `diff -u` shows it.
std::string unified_diff(const Change& change);

/// Carries out a step. False: somebody else has written the file, so plan again.
Result<bool> carry_out(const Change& change, const std::string& folder);

}  // namespace egressclass
