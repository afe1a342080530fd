// SPDX-License-Identifier: Apache-2.0
// The pod of a request, and its class by what is in force on this node.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cni/protocol.h"
#include "core/selection.h"
#include "util/result.h"

namespace egressclass::cni {

struct PodClass {
  std::string name;
  std::uint32_t id = 0;  ///< 0: the configuration has the class, but is not applied on this node
  std::uint32_t vni = 0;
};

Pod pod_of(const Request& request);

/// No value: the pod has no class. What counts is the applied configuration; before the first `egressctl apply`,
/// the file itself, so that a pod with a class is not taken for one without. A file that is missing
/// means no classes. For one that is broken, what was applied last counts, before the last boot too; without that it is
/// an error (kConfigUnreadable): nobody can say.
Result<std::optional<PodClass>> class_of(const Pod& pod);

}  // namespace egressclass::cni
