// SPDX-License-Identifier: Apache-2.0
// gateway_out: what comes out of the gateway's namespace goes back to a pod, here or on another node, or outside with
// an egress IP. Packets are sent by a socket on ec1, as if the namespace had translated them.
#include <netinet/in.h>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint32_t kOtherBits = 0xa5a50000;  // of the mark: not ours
constexpr const char* kEgressIp6 = "2001:db8:113::21";
constexpr const char* kBehindUplink = "192.0.2.50";
constexpr const char* kBehindUplink6 = "2001:db8:2::21";

Packet leaves(const char* src, const char* dst) { return Packet().from(kInsideMac).to(kInsideMac).ip(src, dst); }

Packet reply(const char* pod = kRemotePod) { return leaves(kOutside, pod).tcp(443, 40000); }

Packet translated(const char* dst = kOutside) { return leaves(kEgressIp, dst).udp(40000, 443); }

void put_worker(Node& node, const char* pod, std::uint32_t class_id) {
  node.put("workers", ec(pod),
           ec_worker{.node = ec(kWorker), .gateway = ec(kSecondAddress), .class_id = class_id, .pad = 0});
}

void worker_known(Node& node) { put_worker(node, kRemotePod, kLocalClass); }

struct Case {
  const char* claim;
  void (*given)(Node& node) = nullptr;
  Packet packet = reply();
  std::uint32_t class_id = 0;
  ec_event counted;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.claim << ", given" << c.packet; }

class GatewayOutTest : public DatapathTest {
 protected:
  void expect_silence() const {
    for (const char* device : {"pod0", "pod1", "uplink", "outside"})
      EXPECT_TRUE(node_.far(device).receive_all().empty()) << "something came out of " << device;
  }
};

class GatewayOut : public GatewayOutTest, public ::testing::WithParamInterface<Case> {};

TEST_P(GatewayOut, NothingComesOut) {
  const Case& c = GetParam();
  if (c.given != nullptr) c.given(node_);
  node_.inside().send(c.packet.bytes());
  node_.expect_counts({{c.class_id, c.counted, 1, c.packet.bytes().size()}});
  expect_silence();
}

INSTANTIATE_TEST_SUITE_P(
    Fence, GatewayOut,
    ::testing::Values(Case{.claim = "the address of a pod here does not leave",
                           .packet = leaves(kLocalPod, kOutside).udp(1, 2),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "the address of a pod of another node does not leave",
                           .given = worker_known,
                           .packet = leaves(kRemotePod, kOutside).udp(1, 2),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "the IPv6 address of a pod does not leave",
                           .packet = leaves(kLocalPod6, kOutside6).udp(1, 2),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "an egress IP of another node does not leave",
                           .packet = leaves(kEgressIpElsewhere, kOutside).udp(1, 2),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "the node's own address does not leave",
                           .packet = leaves(kUnderlay, kOutside).udp(1, 2),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "an egress IP that the node has given up does not leave",
                           .given = [](Node& node) { node.erase("egress_ips", ec(kEgressIp)); },
                           .packet = translated(),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "ARP does not leave",
                           .packet = Packet().from(kInsideMac).to(kInsideMac).arp(kEgressIp, kOutside),
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "a broken IP header does not leave",
                           .packet = translated().ip_version(5),
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "a destination without a route is not reached",
                           .packet = translated("203.0.114.7"),
                           .counted = EC_DROP_NO_ROUTE},
                      Case{.claim = "with the datapath down nothing leaves",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = translated(),
                           .counted = EC_DROP_DATAPATH_DOWN}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Replies, GatewayOut,
    ::testing::Values(Case{.claim = "a reply for a pod that was never seen is dropped",
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "a reply for another pod than was seen is dropped",
                           .given = worker_known,
                           .packet = reply("10.244.2.8"),
                           .counted = EC_DROP_NOT_TRANSLATED},
                      Case{.claim = "a reply that is not IP is dropped",
                           .given = worker_known,
                           .packet = Packet().from(kInsideMac).to(kInsideMac).arp(kOutside, kRemotePod),
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "a reply in a class that is no more is dropped",
                           .given =
                               [](Node& node) {
                                 worker_known(node);
                                 node.erase("classes", kLocalClass);
                               },
                           .class_id = kLocalClass,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "a reply in a class that has another gateway now is dropped",
                           .given = [](Node& node) { put_worker(node, kRemotePod, kTunnelClass); },
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "a reply of a family of which the class has no egress IP is dropped",
                           .given = [](Node& node) { put_worker(node, "fd00:244:2::7", kLocalClass); },
                           .packet = leaves(kOutside6, "fd00:244:2::7").tcp(443, 40000),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "with the datapath down no reply is sent",
                           .given =
                               [](Node& node) {
                                 worker_known(node);
                                 node.set_applied(false);
                               },
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down no pod here gets one",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = reply(kLocalPod),
                           .counted = EC_DROP_DATAPATH_DOWN}),
    claim_as_name<Case>);

TEST_F(GatewayOutTest, WhatTheKernelHasToSayOfItsOwnGroupsIsDroppedUncounted) {
  node_.inside().send(
      Packet().from(kInsideMac).to({0x33, 0x33, 0, 0, 0, 2}).ip("fe80::1", "ff02::2").icmp(133).bytes());
  expect_silence();
  node_.expect_counts({});
}

// --- outside -----------------------------------------------------------------------------------------------------

TEST_F(GatewayOutTest, WhatHasAnEgressIpGoesToTheRouterAsItIs) {
  const Packet packet = translated().payload(1400);
  node_.inside().send(packet.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  EXPECT_EQ(hex_dump(*left), hex_dump(Packet(packet).from(kOutsideMac).to(kNextHopMac).bytes()));
  node_.expect_counts({});
  EXPECT_TRUE(node_.far("outside").receive_all().empty()) << "it has left twice";
}

TEST_F(GatewayOutTest, WhatIsLongerThanTheUplinkTakesIsDropped) {
  EXPECT_EQ(node_.gateway_out(translated().payload(1472)).action, Action::kRedirect);
  const Packet packet = translated().payload(1600);
  EXPECT_EQ(node_.gateway_out(packet).action, Action::kDrop);
  node_.expect_counts({{0, EC_DROP_TOO_LONG, 1, packet.bytes().size()}});
}

class OwnNetworkTest : public GatewayOutTest {
 protected:
  /// The egress IPs are answered for on that interface.
  void configure(const std::string& interface) {
    node_.configure_class(R"("destinations": ["0.0.0.0/0", "::/0"], "gateways": [{"address": "192.0.2.31",
                              "egressIPs": ["203.0.113.31", "2001:db8:113::21"])" +
                          interface + "}]");
  }

  /// By which interface both families leave.
  void expect_leaves_by(const std::string& device) {
    for (const Packet& packet : {translated(), leaves(kEgressIp6, kOutside6).udp(40000, 443)}) {
      node_.inside().send(packet.bytes());
      const auto left = node_.far(device).receive(std::chrono::seconds(1));
      ASSERT_TRUE(left) << "nothing has left by " << device << packet;
      const Mac from = device == "uplink" ? kUplinkMac : kOutsideMac;
      EXPECT_EQ(hex_dump(left->bytes), hex_dump(Packet(packet).from(from).to(kNextHopMac).bytes()));
    }
    expect_silence();
  }
};

constexpr const char* kOnUplink = R"(, "interface": "uplink")";

TEST_F(OwnNetworkTest, AnEgressIpOfNoNetworkLeavesAsTheHostRoutes) {
  configure("");
  expect_leaves_by("outside");
}

TEST_F(OwnNetworkTest, AnEgressIpOfAnInterfaceLeavesAsTheHostRoutesIfThereIsNoRouteByIt) {
  configure(kOnUplink);
  expect_leaves_by("outside");
}

TEST_F(OwnNetworkTest, AnEgressIpOfAnInterfaceLeavesByItIfThereIsARoute) {
  configure(kOnUplink);
  // Of the host's routes the other one is the better, which says nothing with IPv4. With IPv6, the kernel looks no
  // further than the best ones.
  const Routing route("route", std::string("198.51.100.0/24 via ") + kBehindUplink + " dev uplink metric 4000");
  const Routing route6("route", std::string("2001:db8:51::/64 via ") + kBehindUplink6 + " dev uplink metric 512");
  expect_leaves_by("uplink");
}

TEST_F(OwnNetworkTest, TheHostsRulesHoldForItIfThereIsNoRouteByItsInterface) {
  configure(kOnUplink);
  const Routing rule("rule", std::string("from ") + kEgressIp + " unreachable");
  const Routing rule6("-6 rule", std::string("from ") + kEgressIp6 + " unreachable");
  const Packet packet = translated();
  const Packet packet6 = leaves(kEgressIp6, kOutside6).udp(40000, 443);
  for (const Packet& sent : {packet, packet6}) node_.inside().send(sent.bytes());
  node_.expect_counts({{0, EC_DROP_NO_ROUTE, 2, packet.bytes().size() + packet6.bytes().size()}});
  expect_silence();
}

TEST_F(OwnNetworkTest, ADestinationWithoutARouteIsNotReached) {
  configure("");
  const Packet packet = leaves(kEgressIp6, "2001:db8:77::7").udp(1, 2);
  node_.inside().send(packet.bytes());
  node_.expect_counts({{0, EC_DROP_NO_ROUTE, 1, packet.bytes().size()}});
}

// --- back to pods ------------------------------------------------------------------------------------------------

TEST_F(GatewayOutTest, AReplyForAPodHereIsPutIntoIt) {
  const Packet packet = reply(kLocalPod).payload(1300);
  node_.inside().send(packet.bytes());
  const auto frame = node_.far("pod1").receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came to the pod";
  EXPECT_EQ(hex_dump(frame->bytes), hex_dump(Packet(packet).from(kLocalPodHostMac).to(kLocalPodMac).bytes()));
  node_.expect_counts({{kLocalClass, EC_RETURNED, 1, packet.bytes().size()}});
}

TEST_F(GatewayOutTest, AReplyGoesToTheWorkerOfItsPodInTheTunnelOfItsClass) {
  worker_known(node_);
  const Packet packet = reply().payload(1300);
  node_.inside().send(packet.bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire (or the packet around it has a mark)";
  EXPECT_EQ(tunneled->vni, kLocalVni);
  EXPECT_EQ(tunneled->src, kSecondAddress);
  EXPECT_EQ(tunneled->dst, kWorker);
  EXPECT_EQ(tunneled->checksum, 0U);
  EXPECT_EQ(hex_dump(tunneled->inner), hex_dump(in_tunnel(packet, kSecondAddress, kWorker).bytes()));
  node_.expect_counts({{kLocalClass, EC_GATEWAY_BACK, 1, packet.bytes().size()}});
}

TEST_F(GatewayOutTest, ALaterFragmentOfAReplyGoesToTheWorkerToo) {
  worker_known(node_);
  node_.inside().send(leaves(kOutside, kRemotePod).fragment(1, 1480, false).payload(100).bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->dst, kWorker);
}

TEST_F(GatewayOutTest, AReplyHasTheMarkOfItsClassForTheTunnelWhateverTheOtherBits) {
  worker_known(node_);
  const Outcome outcome = node_.gateway_out(reply(), kOtherBits | kMask);
  EXPECT_EQ(outcome.action, Action::kRedirect);
  EXPECT_EQ(outcome.mark, kOtherBits | mark_of(kLocalClass));
}

TEST_F(GatewayOutTest, AReplyFollowsAPodThatWasLearnedFromTheTunnel) {
  const Packet request = Packet().from(kForeignMac).to(kForeignMac).ip(kRemotePod, kOutside).udp(1, 2);
  node_.send_tunneled(kSecondWorker, kLocalVni, request.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  node_.far("outside").send(outside_sends(kOutside, kEgressIp).udp(2, source_port(*left)).payload(1300).bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->dst, kSecondWorker);
  const Packet inner = Packet().ip(kOutside, kRemotePod).ttl(63).udp(2, 1).payload(1300);
  EXPECT_EQ(hex_dump(tunneled->inner), hex_dump(in_tunnel(inner, kUnderlay, kSecondWorker).bytes()));
}

}  // namespace
}  // namespace egressclass
