// SPDX-License-Identifier: Apache-2.0
// What was changed on the node that is not ours alone (sysctls, addresses on its interfaces), so that `down` can put
// it back. Noted before it is done: a crash in between costs at most a needless restore.
#pragma once

#include <map>
#include <set>
#include <string>

#include "core/ip.h"
#include "datapath/netlink.h"
#include "util/result.h"

namespace egressclass {

class SystemChanges {
 public:
  static Result<SystemChanges> load();

  /// The egress IPs that we put on interfaces, with the interface's ifindex.
  const std::map<Ip, int>& addresses() const { return addresses_; }

  /// `name` as in "net/ipv4/conf/eth0/forwarding". Unchanged when it has `value` already.
  Status set_sysctl(const std::string& name, const std::string& value);
  /// IPv6 has one switch for all interfaces. Those that take their default route from router advertisements keep doing
  /// so.
  Status forward_ipv6();
  /// Puts the addresses on interfaces, by ifindex. One that somebody else put on an interface stays theirs.
  Status place_addresses(const Netlink& netlink, const std::map<Ip, int>& wanted);
  /// Removes our addresses but those in `wanted`.
  Status remove_addresses_except(const Netlink& netlink, const std::set<Ip>& wanted);
  /// Puts the sysctls back. An interface that is gone needs nothing.
  Status restore_sysctls();

 private:
  Status save() const;
  std::map<std::string, std::string> sysctls_;  ///< name -> value before us
  std::map<Ip, int> addresses_;
};

Result<std::string> read_sysctl(const std::string& name);
Status write_sysctl(const std::string& name, const std::string& value);

}  // namespace egressclass
