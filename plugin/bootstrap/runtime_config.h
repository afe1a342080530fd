// SPDX-License-Identifier: Apache-2.0
// The configuration of container runtimes, as far as it says where they look for networks and plugins.
#pragma once

#include <string>
#include <vector>

#include "util/result.h"

namespace egressclass {

/// Empty: the configuration does not say, or says it with a variable, which is not for us to resolve.
struct CniFolders {
  std::string networks;
  std::string plugins;
};

/// By files of containerd (of any version) or CRI-O, of which a later one counts more; what they import comes after
/// them. One that is not there says nothing. `root` is in front of what is imported.
Result<CniFolders> read_cni_folders(std::vector<std::string> files, const std::string& root);

/// By what `containerd config dump` prints: its imports are in it already.
Result<CniFolders> parse_cni_folders(const std::string& dump);

}  // namespace egressclass
