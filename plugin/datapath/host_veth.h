// SPDX-License-Identifier: Apache-2.0
// From a pod's interface to the host's end of its veth, by the kernel's word alone: names in prevResult
// are fakes, absent or wrong with several main plugins.
#pragma once

#include <string>
#include <vector>

#include "datapath/netlink.h"
#include "util/result.h"

namespace egressclass {

struct PodInterface {
  Link pod;                   ///< in the pod's namespace
  Link host;                  ///< in ours
  std::vector<Ip> addresses;  ///< but link-local ones, which are no pod's alone
};

/// Whether the path leads to the namespace that this process is in.
bool is_own_netns(const std::string& netns_path);

/// Fails with kInvalidNetns when `netns_path` is no namespace, with kNoHostVeth when `ifname` is missing there
/// or is no veth (or netkit) whose other end is in this namespace.
Result<PodInterface> find_pod_interface(const std::string& netns_path, const std::string& ifname);

}  // namespace egressclass
