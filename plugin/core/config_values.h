// SPDX-License-Identifier: Apache-2.0
// The configuration's values that can be judged by themselves: lists of prefixes, patterns and ports, addresses,
// choices. Each reader notes what is wrong with the field, and gives what is right.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/ip.h"
#include "core/json_reader.h"
#include "core/ports.h"

namespace egressclass {

enum class LoneAddress { kRefused, kAccepted };

std::vector<Prefix> read_prefixes(const Field& list, LoneAddress lone, bool may_be_empty);

/// Key "destinations"; `ports` are of those without ports of their own.
std::vector<Destination> read_destinations(const Field& list, const std::vector<PortRule>& ports);

/// Key "except": what is among `destinations` too would be both.
std::vector<Prefix> read_except(const Field& list, const std::vector<Destination>& destinations);

/// Key "ports": sorted; empty for "any".
std::vector<PortRule> read_ports(const Field& list);

std::vector<std::string> read_patterns(const Field& list);
std::vector<SelectRule> read_select(const Field& list);

/// An address that a machine can have.
std::optional<Ip> read_host(const Field& field);

/// Whether the text is `chosen`, not `usual`; a third one is a problem.
bool read_choice(const Field& field, const char* usual, const char* chosen);

}  // namespace egressclass
