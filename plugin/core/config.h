// SPDX-License-Identifier: Apache-2.0
// The configuration file: its meaning as data, and its validation.
// This is the whole fleet's file; what one node makes of it is core/plan.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/ip.h"
#include "core/ports.h"
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
  bool operator==(const SelectRule&) const = default;
};

struct Destination {
  Prefix prefix;
  std::vector<PortRule> ports;  ///< sorted; empty: everything
  auto operator<=>(const Destination&) const = default;
};

enum class Via { kGateway, kNextHop };

struct Gateway {
  Ip address;
  Via via = Via::kGateway;
  std::string interface;       ///< where its egress IPs go, or towards the next hop; empty: by route
  std::vector<Ip> egress_ips;  ///< at most EC_MAX_SLOTS of each family
  bool has_own_ips = false;    ///< they are in the gateway's key "egressIPs", else dealt out of the class's
};

struct ClassConfig {
  std::string name;
  std::vector<SelectRule> select;
  bool is_default = false;
  std::vector<std::string> entitled;      ///< key "namespaces": patterns that may name this class; empty: all
  std::vector<Destination> destinations;  ///< what is steered
  std::vector<Prefix> except;             ///< what is not; the longest prefix of both lists wins
  bool otherwise_drop = false;            ///< key "otherwise": what matches none of both
  bool other_family_bypass = false;       ///< key "otherFamily": a family that no gateway can send
  std::vector<Gateway> gateways;          ///< 1 to EC_MAX_HOPS
  bool spread_flows = false;              ///< key "spread": "flow"
  bool keep_flows = true;                 ///< key "onChange": "keep"
  bool force = false;                     ///< egress IPs are taken over from a machine that has them
  std::optional<std::uint32_t> mark;      ///< key "mark": fixed by the operator, else assigned by each node
  std::uint32_t vni = 0;                  ///< key "vni", else a hash of the name: the same on every node
};

/// Key "audit": what egressd records of flows, and where to.
struct AuditConfig {
  std::string folder = "/var/log/egressclass";
  std::uint32_t file_megabytes = 64;   ///< a file grows to this size, uncompressed
  std::uint32_t max_megabytes = 4096;  ///< all files together; the oldest go first
  std::uint32_t max_days = 90;         ///< how old a file may get
  bool to_stdout = false;              ///< key "stdout": the lines as well
  bool to_syslog = false;              ///< key "syslog": likewise, to the facility `daemon`
  std::vector<std::string> classes;    ///< key "only": patterns; empty: all
  std::vector<SelectRule> pods;        ///< likewise
  std::vector<Prefix> destinations;    ///< likewise
  bool operator==(const AuditConfig&) const = default;
};

struct Config {
  std::vector<ClassConfig> classes;
  std::vector<Prefix> cluster_cidrs;
  std::vector<Prefix> nodes;  ///< node addresses: never steered, and the only tunnel senders accepted
  bool annotations = true;    ///< key "annotations": "honour" (default) or "ignore"
  std::uint32_t mark_mask = kDefaultMarkMask;
  std::uint16_t tunnel_port = kDefaultTunnelPort;
  std::optional<AuditConfig> audit = AuditConfig{};  ///< no value: "audit": false

  const ClassConfig* find(const std::string& name) const;
};

/// One thing wrong with the file: where, what is there, and why it cannot be.
struct ConfigProblem {
  std::string path;   ///< of the key, as in classes[2].egressIPs[0]
  std::string value;  ///< as JSON text, shortened
  std::string reason;
  bool passes = false;  ///< by itself, when an address or an interface of this node comes that is not there yet
};

/// Parses and validates. On failure `problems` holds every problem found, not only the first
/// (broken JSON is one problem, with line and column).
std::optional<Config> parse_config(const std::string& text, std::vector<ConfigProblem>* problems);

/// The problems of `file` as one text, a line each: "<file>: <path>: <value>: <reason>".
std::string format_problems(const std::string& file, const std::vector<ConfigProblem>& problems);

}  // namespace egressclass
