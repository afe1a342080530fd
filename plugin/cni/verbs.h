// SPDX-License-Identifier: Apache-2.0
// What the plugin does for each verb. Each returns what goes to stdout on success.
#pragma once

#include <string>

#include "cni/protocol.h"
#include "util/result.h"

namespace egressclass::cni {

/// Gives the pod its class. A pod without one costs the reading of one file. A pod with one does not start
/// unless the class is in force for its very first packet.
Result<std::string> add(const Request& request);
/// Success whatever is gone already: a failing DEL would keep the plugins before us from releasing the address.
Result<std::string> del(const Request& request);
/// Compares the kernel with what ADD left. Silent, and changes nothing.
Result<std::string> check(const Request& request);
/// Removes this network's attachments that are not in `cni.dev/valid-attachments`.
Result<std::string> gc(const Request& request);
/// Whether ADD would work for a pod with a class.
Result<std::string> status(const Request& request);

}  // namespace egressclass::cni
