// SPDX-License-Identifier: Apache-2.0
// One classed attachment (network, container id, ifname): what ADD did for it, and DEL has to undo.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/ip.h"
#include "core/mac.h"
#include "core/selection.h"
#include "util/result.h"

namespace egressclass {

struct Attachment {
  std::string key;  ///< file name of the record: unique per (network, container id, ifname)
  std::string network;
  std::string container_id;
  std::string ifname;
  Pod pod;
  std::string class_name;
  std::uint32_t class_id = 0;
  std::uint32_t class_vni = 0;  ///< tells whether class_id still means this class
  int host_ifindex = 0;
  std::string host_veth;
  Mac host_mac{};
  Mac pod_mac{};
  std::vector<Ip> addresses;

  /// Marks the kernel's entries of this attachment: ifindexes and addresses are reused, this is not.
  std::uint64_t cookie() const;

  bool operator==(const Attachment&) const = default;

  std::string to_json() const;
  static Result<Attachment> from_json(const std::string& key, const std::string& text);
};

}  // namespace egressclass
