// SPDX-License-Identifier: Apache-2.0
#include "datapath/ip_families.h"

#include <sys/socket.h>

#include "datapath/system_changes.h"

namespace egressclass {

bool has_ipv6(unsigned mtu) { return mtu >= kIpv6MinimumMtu && read_sysctl("net/ipv6/conf/all/forwarding"); }

std::vector<int> families_of(unsigned mtu) {
  return has_ipv6(mtu) ? std::vector{AF_INET, AF_INET6} : std::vector{AF_INET};
}

}  // namespace egressclass
