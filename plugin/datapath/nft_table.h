// SPDX-License-Identifier: Apache-2.0
// The nft table `inet egressclass` of the thread's network namespace: there is one on the host (host_rules.h) and one
// in the gateway's namespace (gateway_rules.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "util/json.h"
#include "util/result.h"

namespace egressclass {

struct NftCounter {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
};

/// Runs the commands as one transaction. The error is nft's own text.
Status run_nft(const std::string& commands);

/// Absent already is success.
Status remove_nft_table();

/// By name; an error when the table is not there.
Result<std::map<std::string, NftCounter>> read_nft_counters();

/// All of it but the counters' values, as nft writes it in JSON. No value: there is no such table.
std::optional<Json> list_nft_table();

/// `text` with each of the names replaced by its value.
std::string with_values(std::string text, const std::map<std::string, std::string>& values);

/// One `add element` for all of them; nothing for none.
std::string add_elements(const std::string& set, const std::vector<std::string>& elements);

/// One line for the MSS of each family, with `condition` before it: a segment of `mtu` bytes has to fit in whole.
std::string clamp_mss(const std::string& condition, unsigned mtu);

}  // namespace egressclass
