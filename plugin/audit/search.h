// SPDX-License-Identifier: Apache-2.0
// Who held an egress IP and a port at some time: the answer of the records.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/ip.h"
#include "util/json.h"
#include "util/result.h"

namespace egressclass::audit {

struct Endpoint {
  Ip ip;
  std::uint16_t port = 0;
  std::uint8_t protocol = 0;
};

/// A flow that had the endpoint.
struct Holder {
  Json record;             ///< the last of its records: of its end, else of its start
  std::int64_t start_ns;   ///< as far as known: else when it was first seen
  std::int64_t end_ns;     ///< kStillOpen, or the latest time to which it can have been open
  bool end_known = false;  ///< false for one that is open, or that ended unseen (egressd was not running)
};

inline constexpr std::int64_t kStillOpen = INT64_MAX;

struct Holders {
  std::vector<Holder> then;  ///< that had it at the time, or within the second; several, if their destinations differ
  std::vector<Holder> near;  ///< if nobody had it then: the last before, and the first after
};

/// Reads all files of the folder, compressed ones too, by their indexes.
Result<Holders> find_holders(const std::string& folder, const Endpoint& endpoint, std::int64_t time_ns);

}  // namespace egressclass::audit
