// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "util/result.h"

namespace egressclass {

/// Prints "ready" when it watches the folders, and then a line "changed" whenever something in them has. Folders that
/// are not there yet are waited for, and links in them followed. Ends when nobody reads any more.
Status watch_folders(const std::vector<std::string>& folders);

}  // namespace egressclass
