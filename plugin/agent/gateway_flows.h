// SPDX-License-Identifier: Apache-2.0
// The flows that this node translates, as conntrack tells of them: each is recorded when it begins and when it ends.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "agent/pods.h"
#include "agent/recorder.h"
#include "core/applied.h"
#include "datapath/conntrack.h"

namespace egressclass::agent {

class GatewayFlows {
 public:
  /// All of these outlive it.
  GatewayFlows(Pods& pods, Recorder& recorder) : pods_(pods), recorder_(recorder) {}

  /// What the marks mean from now on, and this node's address.
  void configure(const Applied& applied, std::string gateway);

  /// Begins, in the gateway's namespace: what is open already is recorded as resumed.
  Status start(Fd netns);
  /// Handles what has happened since. True: there may be more.
  Result<bool> step();
  /// Compares what is known with what there is: after events were lost, and once in a while.
  Status reconcile();
  int fd() const { return events_->fd(); }

  struct Numbers {
    std::uint64_t open = 0;
    std::uint64_t begun = 0;
    std::uint64_t events_lost = 0;
  };
  Numbers numbers() const { return {flows_.size(), begun_, lost_}; }

 private:
  struct Open {
    std::shared_ptr<const audit::Identity> pod;
    audit::Tuple tuple;
    std::int64_t start_ns;
    std::uint32_t slot;  ///< the id of its egress IP
    std::uint32_t seen;  ///< by which reconcile()
  };

  void on_event(bool ended, const TrackedFlow& flow);
  /// Nothing, if it is open already.
  void open_flow(const TrackedFlow& flow, audit::FlowEvent event);
  void end_flow(const TrackedFlow& flow);
  audit::FlowRecord record_of(const Open& open, std::uint64_t key, audit::FlowEvent event) const;
  void count_lost();

  Pods& pods_;
  Recorder& recorder_;
  std::optional<ConntrackEvents> events_;
  Fd netns_;                                       ///< the gateway's
  std::map<std::uint32_t, std::string> class_of_;  ///< id of an egress IP -> its class
  std::string gateway_;
  std::unordered_map<std::uint64_t, Open> flows_;
  std::uint64_t begun_ = 0;
  std::uint64_t lost_ = 0;
  std::uint32_t lost_before_ = 0;  ///< as the kernel counts it
  std::uint32_t round_ = 0;
};

}  // namespace egressclass::agent
