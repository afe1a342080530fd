// SPDX-License-Identifier: Apache-2.0
// The configuration file: its meaning as data, and its validation.
// This is the whole fleet's file; what one node makes of it is core/plan.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/ip.h"
#include "util/result.h"

namespace egressclass {

inline constexpr const char* kConfigPath = "/etc/egressclass/config.json";
inline constexpr std::size_t kMaxConfigBytes = 16U << 20U;
inline constexpr std::uint32_t kDefaultMarkMask = 0x1f7f;
inline constexpr std::uint16_t kDefaultTunnelPort = 8479;

/// Patterns of one select entry: a pod matches when its namespace matches one of `namespaces`
/// (empty: any) and its name one of `pods` (empty: any). `*` and `?` are wildcards.
struct SelectRule {
  std::vector<std::string> namespaces;
  std::vector<std::string> pods;
};

struct ClassConfig {
  std::string name;
  std::vector<SelectRule> select;
  bool is_default = false;
  std::vector<std::string> entitled;  ///< key "namespaces": patterns that may name this class; empty: all
  std::vector<Prefix> destinations;   ///< what is steered
  std::vector<Prefix> except;         ///< what is not; the longest prefix of both lists wins
  Ip gateway;                         ///< key "gateways": exactly one entry in this version
  std::string interface;              ///< gateways[0].interface: where the egress IP goes; empty: by route
  Ip egress_ip;                       ///< key "egressIPs": exactly one IPv4 address in this version
  std::optional<std::uint32_t> mark;  ///< key "mark": fixed by the operator, else assigned by each node
  std::uint32_t vni = 0;              ///< key "vni", else a hash of the name: the same on every node
};

struct Config {
  std::vector<ClassConfig> classes;
  std::vector<Prefix> cluster_cidrs;
  std::vector<Prefix> nodes;  ///< node addresses: never steered, and the only tunnel senders accepted
  bool annotations = true;    ///< key "annotations": "honour" (default) or "ignore"
  std::uint32_t mark_mask = kDefaultMarkMask;
  std::uint16_t tunnel_port = kDefaultTunnelPort;

  const ClassConfig* find(const std::string& name) const;
};

/// One thing wrong with the file: where, what is there, and why it cannot be.
struct ConfigProblem {
  std::string path;   ///< of the key, as in classes[2].egressIPs[0]
  std::string value;  ///< as JSON text, shortened
  std::string reason;
};

/// Parses and validates. On failure `problems` holds every problem found, not only the first
/// (broken JSON is one problem, with line and column).
std::optional<Config> parse_config(const std::string& text, std::vector<ConfigProblem>* problems);

/// The problems of `file` as one text, a line each: "<file>: <path>: <value>: <reason>".
std::string format_problems(const std::string& file, const std::vector<ConfigProblem>& problems);

}  // namespace egressclass
