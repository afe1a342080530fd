// SPDX-License-Identifier: Apache-2.0
// What the datapath does with the first packet of a new flow: read from the maps that the programs read, and decided in
// the order of bpf/egressclass.bpf.c and bpf/flows.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../bpf/egressclass.h"
#include "core/attachment.h"
#include "core/config.h"
#include "core/target.h"
#include "util/result.h"

namespace egressclass {

struct Explanation {
  std::vector<std::string> steps;     ///< for people
  std::optional<ec_event> event;      ///< what is counted; no value: it depends on the flow's own choice of a gateway
  std::optional<Prefix> rule;         ///< the prefix that decided
  std::optional<Ip> gateway;          ///< or next hop
  std::vector<Ip> gateways;           ///< all that flows choose among, where each makes its own choice
  std::optional<Ip> egress_ip;        ///< with which the packet leaves
  std::optional<std::uint32_t> mark;  ///< that the packet gets: of the class, or of one of its egress IPs
};

/// The pod's packet from `source`. `source_port`: of the flow, or the id of an echo; only a class whose flows choose
/// their gateways asks for it. `applied`: the configuration in force, for the names of rules, and for the egress IPs of
/// other nodes. Fails when the maps cannot be read, and when the answer depends on a protocol or port that `to` leaves
/// open.
Result<Explanation> explain(const Attachment& pod, const Ip& source, const Target& to,
                            std::optional<std::uint16_t> source_port, const Config& applied);

}  // namespace egressclass
