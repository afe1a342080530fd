// SPDX-License-Identifier: Apache-2.0
// What conntrack in the gateway's namespace knows of the flows that this node translates: their ct mark is the id of
// their egress IP (gateway_rules.cc), with or without the bit for "tunneled". To be called there.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "core/ip.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

struct TrackedCount {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
};

struct TrackedFlow {
  std::uint32_t id = 0;  ///< conntrack's; may be given again to a later flow of the same addresses and ports
  std::uint32_t mark = 0;
  std::uint8_t protocol = 0;
  std::uint8_t tcp_state = 0;  ///< TCP_CONNTRACK_..., 0: none
  bool answered = false;
  Ip source;  ///< of the pod's packets
  Ip destination;
  Ip egress;                           ///< where the answers go
  std::uint16_t source_port = 0;       ///< host order; ICMP: the identifier
  std::uint16_t destination_port = 0;  ///< ICMP: 0
  std::uint16_t egress_port = 0;
  std::optional<TrackedCount> out;  ///< no value: not counted (nf_conntrack_acct was off when it began)
  std::optional<TrackedCount> in;
  std::int64_t start_ns = 0;  ///< since 1970; 0: not known (nf_conntrack_timestamp)
  std::int64_t stop_ns = 0;
};

class ConntrackEvents {
 public:
  using Handler = std::function<void(bool ended, const TrackedFlow& flow)>;

  /// From here on, events of flows whose ct mark has a bit of `marks` are queued, and of no others.
  static Result<ConntrackEvents> open(std::uint32_t marks);

  int fd() const { return fd_.get(); }
  /// Handles what is queued, at most so many events, without waiting. True: there may be more.
  Result<bool> read(const Handler& handler, std::size_t max_events) const;
  /// How many events found no room in the queue, in all. 0 too when the kernel does not say.
  std::uint64_t lost() const;

 private:
  explicit ConntrackEvents(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

/// All such flows that there are. What comes and goes meanwhile may be among them or not.
Status list_tracked(std::uint32_t marks, const std::function<void(const TrackedFlow& flow)>& handler);

}  // namespace egressclass
