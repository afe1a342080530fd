// SPDX-License-Identifier: Apache-2.0
// Result objects of the CNI versions 0.3.0 to 1.1.0 (SPEC section 5), kept as the JSON that they came as.
#pragma once

#include <string>
#include <vector>

#include "util/json.h"

namespace egressclass::cni {

/// Changes what the two versions write differently and sets `cniVersion`; leaves all the rest and its order.
void convert_result(Json* result, const std::string& from, const std::string& to);

/// The addresses that `result` gives to the container's interface `ifname`, as they are written there.
/// Entries without an interface index count as this interface's; an index that names none is skipped.
std::vector<std::string> addresses_of(const Json& result, const std::string& ifname);

}  // namespace egressclass::cni
