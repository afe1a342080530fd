// SPDX-License-Identifier: Apache-2.0
// Where the links of our programs are pinned: which program of which interface each is.
#pragma once

#include <string>
#include <vector>

namespace egressclass {

/// Of tunnel_in and tunnel_out.
extern const char* const kTunnelInPin;
extern const char* const kTunnelOutPin;

/// Of nexthop_in on an interface towards a next hop; and all of them that there are.
std::string nexthop_pin(int ifindex);
std::vector<std::string> nexthop_pins();

/// Of the classifier on a pod's host veth.
std::string classifier_pin(int ifindex);

/// The interfaces for which a classifier is pinned, whether or not they are there still, and whether or not there is a
/// record of a pod. They are in order.
std::vector<int> classifier_pins();

}  // namespace egressclass
