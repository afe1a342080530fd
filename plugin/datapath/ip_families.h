// SPDX-License-Identifier: Apache-2.0
// Which of IPv4 and IPv6 the kernel has on a device.
#pragma once

#include <vector>

namespace egressclass {

/// It has IPv6 on no device that takes less, in bytes (RFC 8200, 5).
inline constexpr unsigned kIpv6MinimumMtu = 1280;

bool has_ipv6(unsigned mtu);

/// AF_INET, and AF_INET6 if it has that.
std::vector<int> families_of(unsigned mtu);

}  // namespace egressclass
