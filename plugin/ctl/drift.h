// SPDX-License-Identifier: Apache-2.0
// A configuration that is in force was made for the addresses and interfaces that the node had then, and needs others'
// routes.
#pragma once

#include <string>
#include <vector>

#include "core/attachment.h"
#include "core/config.h"
#include "core/plan.h"
#include "datapath/netlink.h"

namespace egressclass::ctl {

/// What this node does not have for its egress IPs to be of use, a line each: addresses, routes.
std::vector<std::string> lacks(const Config& config, const Plan& plan);

/// What an apply of the configuration in force would make otherwise now: what came after it, moved, or is gone; and
/// lacks(). Of a node on which nothing is in force: none. To be asked with the
/// node's lock shared.
std::vector<std::string> drift(const Netlink& netlink, const std::vector<Attachment>& attachments);

}  // namespace egressclass::ctl
