// SPDX-License-Identifier: Apache-2.0
// Pods with a class whose record is lost, or cannot be read. The kernel still has all that their packets need; only the
// pod's name and what else ADD was told are gone for good, so that nobody can give the pod another class, or mend it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/attachment.h"
#include "core/ip.h"
#include "datapath/netlink.h"
#include "util/result.h"

namespace egressclass {

struct Orphan {
  std::uint32_t class_id = 0;
  std::uint32_t class_vni = 0;  ///< 0: the class is no more
  std::string host_veth;        ///< empty: gone, so this is only what a pod has left behind
  std::vector<Ip> addresses;

  /// Which pod it is, as far as that is known, and what to do.
  std::string text() const;
};

/// `attachments`: all of which there are records. None where nothing is applied.
Result<std::vector<Orphan>> find_orphans(const Netlink& netlink, const std::vector<Attachment>& attachments);

}  // namespace egressclass
