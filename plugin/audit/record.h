// SPDX-License-Identifier: Apache-2.0
// One line of JSON for each thing that happened. README "Audit records" describes the keys for those who read them;
// their order is fixed, which index.h relies on.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/ip.h"
#include "core/selection.h"
#include "util/json.h"

namespace egressclass::audit {

/// Who a pod is, with its part of a record's text, made once.
class Identity {
 public:
  Identity(Pod pod, const std::string& container_id);
  const Pod& pod() const { return pod_; }
  const std::string& json() const { return json_; }

 private:
  Pod pod_;
  std::string json_;
};

struct Traffic {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
};

/// Addresses and ports (host order) of a flow's packets on their way out. Of ICMP, source_port and egress_port are the
/// identifier, destination_port is 0; protocols without ports have 0.
struct Tuple {
  Ip source;
  Ip destination;
  Ip egress;  ///< what the far side sees as the source; unspecified: not translated here
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint16_t egress_port = 0;
  std::uint8_t protocol = 0;
};

enum class FlowEvent {
  kStart,
  kResumed,  ///< was open already when egressd began
  kEnd
};

struct FlowRecord {
  FlowEvent event = FlowEvent::kStart;
  std::int64_t time_ns = 0;
  std::uint64_t id = 0;           ///< the same in all records of a flow
  std::string class_name;         ///< empty: not known any more
  const Identity* pod = nullptr;  ///< nullptr: not known
  Tuple tuple;
  std::string gateway;
  std::int64_t start_ns = 0;   ///< 0: not known
  std::optional<Traffic> out;  ///< no value: was not counted
  std::optional<Traffic> in;
  const char* reason = nullptr;  ///< of the end
};

/// Makes lines, each with its line feed.
class RecordWriter {
 public:
  /// `node`: by which name this node goes in the records.
  explicit RecordWriter(const std::string& node);

  std::string flow(const FlowRecord& record) const;
  /// egressd itself: "started", "stopped".
  std::string agent(const char* state, std::int64_t time_ns) const;
  /// Records, or news of flows, that nobody will see.
  std::string lost(std::uint64_t count, const char* what, const std::string& reason, std::int64_t time_ns) const;

 private:
  std::string node_;  ///< as JSON text
};

/// "tcp", "udp", ..., or the number.
std::string protocol_name(std::uint8_t protocol);

}  // namespace egressclass::audit
