// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace egressclass {

/// Of the release; `make dist` reads it here.
inline constexpr const char* kVersion = "0.4.0";

}  // namespace egressclass
