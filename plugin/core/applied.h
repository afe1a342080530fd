// SPDX-License-Identifier: Apache-2.0
// What is in force on this node, as far as the plugin has to know it: the classes with their ids, and whom they
// select. Written by `egressctl apply`; a later edit of the configuration file changes nothing until the next.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "core/attachment.h"
#include "core/config.h"
#include "util/result.h"

namespace egressclass {

struct Applied {
  Config selection;                          ///< only names, VNIs, mark mask, and what chooses a pod's class
  std::map<std::string, std::uint32_t> ids;  ///< class name -> class id of this node
  /// (class name, egress IP) -> the id whose mark nft translates to that IP; the class's own, or one of its own
  std::map<std::pair<std::string, Ip>, std::uint32_t> slots;

  std::string to_json() const;
  static Result<Applied> from_json(const std::string& text);
};

/// The attachment of a running pod as it has to be now: with another class, if another one is chosen for the pod. One
/// that gets no class, or may not have the one that it names, keeps what it has.
Attachment reclassed(const Applied& applied, Attachment attachment);

/// No value: nothing is applied.
Result<std::optional<Applied>> read_applied();
/// What was applied last, before the last boot too. No value: nothing ever was, or it cannot be read.
std::optional<Applied> read_last_applied();

}  // namespace egressclass
