// SPDX-License-Identifier: Apache-2.0
// Sysctls of the node that were changed, so that `down` can put them back. Noted before it is done: a crash in between
// costs at most a needless restore.
#pragma once

#include <map>
#include <string>

#include "util/result.h"

namespace egressclass {

class SystemChanges {
 public:
  static Result<SystemChanges> load();

  /// `name` as in "net/ipv4/conf/eth0/forwarding". Unchanged when it has `value` already.
  Status set_sysctl(const std::string& name, const std::string& value);
  /// IPv6 has one switch for all interfaces. Those that take their default route from router advertisements keep doing
  /// so.
  Status forward_ipv6();
  /// Puts the sysctls back. An interface that is gone needs nothing.
  Status restore_sysctls();

 private:
  Status save() const;
  std::map<std::string, std::string> sysctls_;  ///< name -> value before us
};

Result<std::string> read_sysctl(const std::string& name);
Status write_sysctl(const std::string& name, const std::string& value);

}  // namespace egressclass
