// SPDX-License-Identifier: Apache-2.0
// Which pod has an address.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "audit/record.h"
#include "core/ip.h"

namespace egressclass::agent {

/// The pods of this node that have a class, by the plugin's records of attachments.
class Pods {
 public:
  /// Reads the records again, if there may be others than at the last time. Cheap if not.
  void refresh();

  /// nullptr: none that is known. What it gives stays valid for as long as the caller keeps it.
  std::shared_ptr<const audit::Identity> find(const Ip& address) const;

 private:
  std::map<Ip, std::shared_ptr<const audit::Identity>> by_address_;
  std::int64_t read_of_ns_ = -1;  ///< when the records had last changed at the time they were read
};

}  // namespace egressclass::agent
