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
  std::map<std::string, int> interfaces;            ///< name -> ifindex
  std::set<Ip> held;                                ///< egress IPs that this node holds since an earlier apply
  std::map<std::uint32_t, std::string> attached;    ///< class id -> name of the class its running pods have
  std::map<std::uint32_t, std::uint32_t> orphaned;  ///< class id -> VNI of a class of pods whose record is lost
  std::map<Ip, std::string> pods;                   ///< address -> "namespace/name" of classed pods here
  std::optional<Applied> previous;
};

enum class Path { kLocal, kTunnel, kNextHop };

/// A gateway of a class, as this node reaches it.
struct PlannedHop {
  Ip address;
  Path path = Path::kTunnel;
  int ifindex = 0;  ///< of the interface towards a next hop
  bool v4 = false;  ///< the families that it can send on
  bool v6 = false;
};

/// An egress IP of a class of which this node is a gateway.
struct PlannedSlot {
  Ip ip;
  std::uint32_t id = 0;      ///< the class's own, or one of its own: nft translates what carries it to `ip`
  int ifindex = 0;           ///< where the egress IP is answered for
  bool own_network = false;  ///< it leaves by there, if there is a route
};

struct PlannedClass {
  std::string name;
  std::uint32_t id = 0;
  std::uint32_t mark = 0;
  std::uint32_t vni = 0;
  std::vector<PlannedHop> hops;
  std::vector<PlannedSlot> slots;  ///< empty: this node is no gateway of the class
  std::vector<Destination> destinations;
  std::vector<Prefix> except;
  bool otherwise_drop = false;
  bool other_family_bypass = false;
  bool spread_flows = false;
  bool keep_flows = true;
  bool force = false;  ///< its egress IPs are taken over from a machine that has them
};

/// This node's address among `nodes`, of one family.
struct Underlay {
  Ip ip;
  int ifindex = 0;
};

struct Plan {
  std::optional<Underlay> underlay4;
  std::optional<Underlay> underlay6;
  std::uint32_t mark_mask = 0;
  std::uint16_t tunnel_port = 0;
  bool audited = false;  ///< conntrack is to count and time flows
  std::vector<PlannedClass> classes;
  std::set<Prefix> never_steered;
  std::set<Prefix> senders;
  Applied applied;  ///< for the plugin
};

/// No value: the configuration cannot be in force on this node, or not yet; `problems` says why.
std::optional<Plan> make_plan(const Config& config, const NodeFacts& facts, std::vector<ConfigProblem>* problems);

}  // namespace egressclass
