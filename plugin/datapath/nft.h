// SPDX-License-Identifier: Apache-2.0
// The table `inet egressclass`: SNAT by class mark, the way back of replies, and the guard that nothing
// marked leaves with another source than its class's. One transaction at a time; counters survive it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/plan.h"
#include "util/result.h"

namespace egressclass {

struct NftCounter {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
};

/// The transaction that makes the table what `plan` says. `tunnel_mtu` 0: there is no tunnel.
std::string nft_ruleset(const Plan& plan, unsigned tunnel_mtu);

Status apply_nft(const Plan& plan, unsigned tunnel_mtu);
/// Absent already is success.
Status remove_nft();
/// By name; an error when the table is not there.
Result<std::map<std::string, NftCounter>> read_nft_counters();

}  // namespace egressclass
