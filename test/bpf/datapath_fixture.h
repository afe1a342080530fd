// SPDX-License-Identifier: Apache-2.0
// The programs in the kernel, without pins, on a node of three network namespaces:
//
//   far       pod0       pod1       uplink        outside        packet sockets: the tests play all the others
//              |          |          |              |
//   node      pod0       pod1       uplink        outside        egress0                   ec0
//             classify   classify   192.0.2.31    nexthop_in     tunnel_in, tunnel_out     gateway_out
//                                   192.0.2.11    uplink_in;                                |
//                                   and IPv6;     the way to                                |
//                                   uplink_in     kOutside                                  |
//   gateway                                                                                ec1
//                                                                                          gateway_in; routes and
//                                                                                          nft rules as the product has
//
// configure() fills the maps and the nft table as `egressctl apply` would, with the product's own code; reset() starts
// with a configuration of three classes, and as after two ADDs. No marked packet that the node makes itself gets out:
// the packet around a tunneled one has no mark.
#pragma once

#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <array>
#include <cctype>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/plan.h"
#include "datapath/in_netns.h"
#include "datapath/maps.h"
#include "packet_builder.h"
#include "util/fd.h"

struct egressclass_bpf;

namespace egressclass {

inline constexpr std::uint32_t kMask = 0x1f7f;

// Classes. The first two have a pod here; this node is the gateway of kLocalClass.
inline constexpr std::uint32_t kTunnelClass = 0x85;  // its mark is another number
inline constexpr std::uint32_t kLocalClass = 2;
inline constexpr std::uint32_t kOtherClass = 3;  // like kTunnelClass
inline constexpr std::uint32_t kTunnelVni = 0x010203;
inline constexpr std::uint32_t kLocalVni = 0x0a0b0c;
inline constexpr std::uint32_t kOtherVni = 0x020304;
inline constexpr std::uint32_t kTunnelRules = EC_RULESET_FIRST;
inline constexpr std::uint32_t kLocalRules = EC_RULESET_FIRST + 1;

// Nodes.
inline constexpr const char* kUnderlay = "192.0.2.31";  // this one: gateway of kLocalClass
inline constexpr const char* kUnderlay6 = "2001:db8:2::31";
inline constexpr const char* kSecondAddress = "192.0.2.11";  // this one, too
inline constexpr const char* kGateway = "192.0.2.21";        // of kTunnelClass and kOtherClass
inline constexpr const char* kGateway2 = "192.0.2.22";       // more of them, for classes that have several
inline constexpr const char* kGateway3 = "192.0.2.23";
inline constexpr const char* kGateway4 = "192.0.2.24";
inline constexpr const char* kGateway6 = "2001:db8:2::21";
inline constexpr const char* kWorker = "192.0.2.12";  // sends for kRemotePod
inline constexpr const char* kWorker6 = "2001:db8:2::12";
inline constexpr const char* kSecondWorker = "192.0.2.13";  // might, too
inline constexpr const char* kStranger = "192.0.2.50";      // none of ours
inline constexpr const char* kNextHop = "203.0.113.1";      // a router on `outside`
inline constexpr const char* kNextHop6 = "2001:db8:113::1";
inline constexpr const char* kNode6 = "2001:db8:2::21";      // among those never steered
inline constexpr const char* kServiceIp = "100.64.0.10";     // clusterCIDR 100.64.0.0/16
inline constexpr const char* kServiceIp6 = "2001:db8:3::a";  // clusterCIDR 2001:db8:3::/48

// Pods.
inline constexpr const char* kPod = "10.244.1.5";  // behind pod0, kTunnelClass
inline constexpr const char* kPod6 = "fd00:244:1::5";
inline constexpr const char* kLocalPod = "10.244.1.6";  // behind pod1, kLocalClass
inline constexpr const char* kLocalPod6 = "fd00:244:1::6";
inline constexpr const char* kRemotePod = "10.244.2.7";  // on kWorker, kLocalClass

// What kTunnelClass has among its destinations: 0.0.0.0/0, ::/0, 10.99.0.0/16; except: 10.0.0.0/8, 10.99.7.0/24,
// fd00::/8. Those of kLocalClass: 198.51.100.0/24, ::/0; except: 198.51.100.128/25.
inline constexpr const char* kOutside = "198.51.100.7";
inline constexpr const char* kOutside6 = "2001:db8:51::7";

// Egress IPs of kLocalClass, and of kTunnelClass, which is none of this node's.
inline constexpr const char* kEgressIp = "203.0.113.31";
inline constexpr const char* kEgressIpElsewhere = "203.0.113.21";

inline constexpr Mac kPodMac = {0x0a, 0, 0, 0, 1, 5};
inline constexpr Mac kPodHostMac = {0x0a, 0, 0, 0, 1, 1};
inline constexpr Mac kLocalPodMac = {0x0a, 0, 0, 0, 1, 6};
inline constexpr Mac kLocalPodHostMac = {0x0a, 0, 0, 0, 1, 2};
inline constexpr Mac kNextHopMac = {0x0a, 0, 0, 0, 0xff, 0xff};  // of whatever is behind uplink and outside
inline constexpr Mac kUplinkMac = {0x0a, 0, 0, 0, 0xff, 1};
inline constexpr Mac kOutsideMac = {0x0a, 0, 0, 0, 0xff, 2};
inline constexpr Mac kTunnelDeviceMac = {0x02, 0xee, 0, 0, 0, 1};
inline constexpr Mac kInsideMac = {0x02, 0xec, 0, 0, 0, 2};  // of ec0 and ec1
inline constexpr Mac kForeignMac = {0x0a, 0, 0, 0, 9, 9};

std::uint32_t mark_of(std::uint32_t class_id);
/// With the bit that says that nft has not seen the packet yet.
std::uint32_t pending_mark_of(std::uint32_t class_id);
/// Of what a pod of the class here sends into the gateway's namespace; see EC_MARK_*.
constexpr std::uint32_t new_mark_of(std::uint32_t class_id) { return EC_MARK_NEW | class_id; }
/// With the MAC addresses that it has in the tunnel from one node to another.
Packet in_tunnel(Packet packet, const char* from, const char* to);

enum class Program {
  kClassify,
  kClassifyAgain,
  kTunnelIn,
  kTunnelOut,
  kNexthopIn,
  kUplinkIn,
  kGatewayIn,  // runs in the gateway's namespace
  kGatewayOut
};
enum class Action { kNext = TC_ACT_UNSPEC, kDrop = TC_ACT_SHOT, kRedirect = TC_ACT_REDIRECT };

struct Outcome {
  Action action;
  std::uint32_t mark;
  Bytes data;
  std::array<__u32, 2> cb{};  ///< the first words of skb->cb
};

/// An entry of the map `counters`, summed over the CPUs.
struct Count {
  std::uint32_t class_id;
  __u32 event;
  std::uint64_t packets;
  std::uint64_t bytes;
  auto operator<=>(const Count&) const = default;
};

struct Frame {
  Bytes bytes;
  bool for_host;  ///< the receiving stack takes it as its own
};

/// A packet socket on one interface, in the namespace in which it was made.
class PacketSocket {
 public:
  explicit PacketSocket(const std::string& interface);
  void send(const Bytes& frame, std::uint32_t mark = 0) const;
  std::optional<Frame> receive(std::chrono::milliseconds timeout) const;
  /// Whatever has come, and comes within a moment.
  std::vector<Frame> receive_all() const;
  int ifindex() const { return ifindex_; }

 private:
  int ifindex_;
  Fd fd_;
};

/// A network namespace of the node.
enum class Where { kHost, kInside };

class Node {
 public:
  Node();
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  void reset();

  /// The node's new configuration, in JSON; every gateway of it has just been heard.
  const Plan& configure(const std::string& json);
  /// A configuration of one class with these members, in JSON, which is that of the pod behind pod0. Returns its id.
  std::uint32_t configure_class(const std::string& members);
  std::uint32_t id_of(const std::string& class_name) const;
  /// The pod behind the device, which from now on is of that class.
  void put_pod(const std::string& device, std::uint32_t class_id);

  template <class Key, class Value>
  void put(const char* map, const Key& key, const Value& value) {
    put_bytes(map, &key, sizeof(key), &value, sizeof(value));
  }
  template <class Value, class Key>
  std::optional<Value> find(const char* map, const Key& key) const {
    Value value{};
    if (!find_bytes(map, &key, sizeof(key), &value, sizeof(value))) return std::nullopt;
    return value;
  }
  template <class Key>
  void erase(const char* map, const Key& key) {
    erase_bytes(map, &key, sizeof(key));
  }
  /// Changes an entry in place.
  template <class Value, class Key, class Change>
  void change(const char* map, const Key& key, Change change) {
    std::optional<Value> value = find<Value>(map, key);
    ASSERT_TRUE(value) << "no entry to change in the map " << map;
    change(*value);
    put(map, key, *value);
  }
  void put_rule(std::uint32_t ruleset, const char* prefix, ec_verdict verdict);
  void set_applied(bool applied);
  /// As if somebody had removed ec0.
  void cut_off_gateway();
  /// All gateways have just been heard.
  void see_gateways();
  /// Those that were not lost: for tests that send so much that it takes longer than a gateway may be silent.
  void keep_hearing_gateways();
  /// One has not answered several probes.
  void lose_gateway(const char* address);
  /// The kernel's conntrack knows a flow: the arguments of `conntrack -I`. Before other changes.
  void track(const std::string& flow, Where where = Where::kHost);
  /// The same of many at once.
  void track(const std::vector<std::string>& flows, Where where = Where::kHost);
  /// It knows none any more, in either namespace.
  void forget_flows();
  /// What it knows of one, as conntrack writes it; "": nothing. The arguments of `conntrack -G`.
  std::string tracked(const std::string& flow, Where where = Where::kHost) const;

  Outcome run(Program program, const Bytes& packet, int ifindex, std::uint32_t mark = 0) const;
  /// The same with all that the kernel knows of the packet: its segments, and what other programs left in skb->cb.
  Outcome run(Program program, const Bytes& packet, const __sk_buff& before) const;
  Outcome classify(const Packet& packet, const std::string& device = "pod0", std::uint32_t mark = 0) const;
  /// What becomes of a packet in the gateway's namespace, into which a program has led it.
  Outcome gateway_in(const Outcome& led_in) const;
  /// Of what has come out of there.
  Outcome gateway_out(const Packet& packet, std::uint32_t mark = 0) const;
  /// To which gateway the packet goes in the tunnel; empty: to none.
  std::string gateway_of(const Outcome& outcome) const;
  /// How many packets were counted as that, in all classes.
  std::uint64_t counted(ec_event event) const;
  std::vector<Count> counts() const;
  /// Waits until so many packets have been counted; then that, and nothing else, must have been.
  void expect_counts(std::vector<Count> expected) const;

  /// A VXLAN packet from another node. `to` is one of this node's addresses.
  void send_tunneled(const char* sender, std::uint32_t vni, const Bytes& inner, const char* to = kUnderlay) const;
  /// The next VXLAN packet that this node sends; nothing, if none comes.
  std::optional<Tunneled> next_tunneled() const;
  /// The next packet that leaves by `outside`.
  std::optional<Bytes> next_outside() const;

  int ifindex(const std::string& device) const;
  const PacketSocket& far(const std::string& device) const { return far_.at(device); }
  const PacketSocket& egress0() const { return *egress0_; }
  /// ec1: gets what comes into the gateway's namespace, and sends what leaves it.
  const PacketSocket& inside() const { return *inside_; }

 private:
  void make_devices();
  void make_gateway();
  /// The thread is there while the result lives.
  std::optional<InNetns> in(Where where) const;
  NodeFacts facts() const;
  void attach(Program program, const std::string& device);
  int program_fd(Program program) const;
  int map_fd(const char* name, std::size_t key_size, std::size_t value_size) const;
  void put_bytes(const char* map, const void* key, std::size_t key_size, const void* value, std::size_t value_size);
  bool find_bytes(const char* map, const void* key, std::size_t key_size, void* value, std::size_t value_size) const;
  void erase_bytes(const char* map, const void* key, std::size_t key_size);

  struct Unload {
    void operator()(egressclass_bpf* skeleton) const;
  };
  std::unique_ptr<egressclass_bpf, Unload> skeleton_;
  std::vector<Fd> links_;
  std::map<std::string, PacketSocket> far_;
  std::optional<PacketSocket> egress0_;
  std::optional<PacketSocket> inside_;
  Fd gateway_netns_;
  std::optional<Plan> plan_;
};

/// What the pods here send. To another MAC address than the host veth's: that of a bridge, for example.
Packet pod_sends(const char* dst);
Packet local_pod_sends(const char* dst);

/// On the node, for as long as it lives: what `ip OBJECT add WHAT` adds.
class Routing {
 public:
  Routing(std::string object, std::string what);
  ~Routing();
  Routing(const Routing&) = delete;
  Routing& operator=(const Routing&) = delete;

 private:
  std::string object_;
  std::string what_;
};

/// The port from which a packet comes, without IP options; of an echo, its identifier.
std::uint16_t source_port(const Bytes& frame);
/// What has left by `outside` is what was sent, as a router sends it on, but from the egress IP, and from any port.
void expect_translated(const Bytes& left, const Packet& sent, const char* egress_ip);
/// What a host beyond `outside` sends to the node.
Packet outside_sends(const char* src, const char* dst);

/// Every test has the node to itself, in its first state.
class DatapathTest : public ::testing::Test {
 protected:
  DatapathTest();
  Node& node_;
};

inline ec_ip ec(const char* address) { return to_ec(Ip::parse(address).value()); }
std::uint64_t monotonic_ns();
/// As operators know it.
const char* name_of(__u32 event);

/// "ARP passes" -> "ARP_passes"
template <class Case>
std::string claim_as_name(const ::testing::TestParamInfo<Case>& info) {
  std::string name;
  for (const char c : std::string(info.param.claim))
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      name += c;
    else if (!name.empty() && name.back() != '_')
      name += '_';
  return name;
}

std::ostream& operator<<(std::ostream& out, Action action);
std::ostream& operator<<(std::ostream& out, const Count& count);

}  // namespace egressclass
