// SPDX-License-Identifier: Apache-2.0
// A configuration that is in force was made for the addresses and interfaces that the node had then.
#pragma once

#include <string>
#include <vector>

#include "core/attachment.h"
#include "datapath/netlink.h"

namespace egressclass::ctl {

/// What an apply of the configuration in force would make otherwise now, a line each: what came after it, moved, or is
/// gone. Of a node on which nothing is in force: none. To be asked with the node's lock shared.
std::vector<std::string> drift(const Netlink& netlink, const std::vector<Attachment>& attachments);

}  // namespace egressclass::ctl
