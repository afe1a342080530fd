// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace egressclass {

/// A running pod as libcni remembers it: with each attachment it keeps the configuration that made it.
struct CachedPod {
  std::string name;  // "NAMESPACE/NAME", or the container's id
  std::string network;
  bool has_entry;  // our plugin was in the list. Drop-ins are not kept, and so not seen
};

/// The pods in libcni's `cache`; `root` is in front of the node's paths.
std::vector<CachedPod> cached_pods(const std::string& cache, const std::string& root);

}  // namespace egressclass
