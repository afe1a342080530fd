// SPDX-License-Identifier: Apache-2.0
// What one node makes of the fleet's configuration: its role in each class, and the class's id here.
// Pure: from data to data. datapath/ makes the kernel equal to it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/applied.h"
#include "core/config.h"
#include "core/ip.h"

namespace egressclass {

/// The facts about this node that a plan depends on.
struct NodeFacts {
  struct Address {
    int ifindex = 0;
    Ip ip;
    unsigned prefix_length = 128;
  };
  std::vector<Address> addresses;
  std::map<std::string, int> interfaces;          ///< name -> ifindex
  std::set<Ip> placed;                            ///< egress IPs that an earlier apply put on this node
  std::map<std::uint32_t, std::string> attached;  ///< class id -> name of the class its running pods have
  std::map<Ip, std::string> pods;                 ///< address -> "namespace/name" of classed pods here
  std::optional<Applied> previous;
};

struct PlannedClass {
  std::string name;
  std::uint32_t id = 0;
  std::uint32_t mark = 0;
  std::uint32_t vni = 0;
  Ip gateway;
  Ip egress_ip;
  bool local = false;      ///< this node is the gateway
  int egress_ifindex = 0;  ///< where the egress IP goes, if local
  std::vector<Prefix> destinations;
  std::vector<Prefix> except;
};

struct Plan {
  Ip underlay;  ///< this node's address among `nodes`
  int underlay_ifindex = 0;
  std::uint32_t mark_mask = 0;
  std::uint16_t tunnel_port = 0;
  std::vector<PlannedClass> classes;
  std::set<Prefix> never_steered;
  std::set<Prefix> senders;
  Applied applied;  ///< for the plugin
};

/// No value: the configuration cannot be in force on this node; `problems` says why.
std::optional<Plan> make_plan(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems);

}  // namespace egressclass
