// SPDX-License-Identifier: Apache-2.0
// CNI network configurations that belong to somebody else, and our entry in them: text in, text out. What is not ours
// stays byte for byte as it was: keys, order, numbers, blanks.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "util/json.h"
#include "util/result.h"

namespace egressclass {

inline constexpr std::string_view kEntryType = "egressclass";
inline constexpr std::string_view kDefaultEntry =
    R"({ "type": "egressclass", "capabilities": { "io.kubernetes.cri.pod-annotations": true } })";

/// A network as libcni understands it. A single plugin's file (`.conf`, `.json`) is a network of one plugin.
struct Network {
  bool is_list = false;
  std::string name;
  std::vector<std::string> versions;  // "cniVersion" and "cniVersions": any of them a runtime may choose
  bool only_inlined = false;          // the runtime is not to look for drop-ins
  Json plugins = Json::array();
};

/// What libcni would refuse is an error, and so is what would not be plain to edit (a key twice).
Result<Network> parse_network(const std::string& text, bool is_list);

/// Our entry for a list, from the operator's file: an object of our type. Its text goes into lists as it is.
Result<std::string> parse_entry(const std::string& text);

bool is_ours(const Json& plugin);
bool is_tuning(const Json& plugin);
bool has_entry(const Network& network);

/// The list with our entry, once, equal to `entry`: where it is already, if it can work there, else at the end. An
/// error for a list that has nothing else: there is nothing to be chained to.
Result<std::string> with_entry(const std::string& list, const std::string& entry);

/// The list without any entry of ours; what with_entry() appended leaves no trace.
Result<std::string> without_entry(const std::string& list);

/// The list with the plugins that others have chained into `copy`, which was made of it: those whose type it has not.
Result<std::string> with_additions(const std::string& list, const std::string& copy);

bool same_but_for_entry(const std::string& list, const std::string& other);

/// The list that a runtime makes of a single plugin's file.
std::string as_list(const std::string& single);

}  // namespace egressclass
