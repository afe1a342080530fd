// SPDX-License-Identifier: Apache-2.0
// tunnel_in: what becomes of what other nodes send through the tunnel. All packets are real ones.
#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

// In the tunnel. They need not be what they are.
constexpr Mac kWorkerMac = {0x02, 0xed, 0, 0, 0, 12};
constexpr Mac kGatewayMac = {0x02, 0xed, 0, 0, 0, 21};

constexpr std::uint8_t kEcho = 8;

enum class Arrives { kNowhere, kInPod, kTranslated };

struct Case {
  const char* claim;
  void (*given)(Node& node) = nullptr;
  const char* sender;
  std::uint32_t vni;
  Packet inner;
  Arrives arrives = Arrives::kNowhere;
  std::uint32_t class_id = 0;
  ec_event counted;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.claim << ", given from " << c.sender << " with the VNI " << c.vni << c.inner;
}

// What a worker sends to this node as its gateway.
Packet outward(const char* dst) { return Packet().from(kWorkerMac).to(kForeignMac).ip(kRemotePod, dst); }

// What a gateway sends back to this node for one of its pods.
Packet answer() { return Packet().from(kGatewayMac).to(kForeignMac).ip(kOutside, kPod).tcp(443, 40000); }

class TunnelInTest : public DatapathTest {
 protected:
  std::optional<ec_worker> worker(const char* pod) const { return node_.find<ec_worker>("workers", ec(pod)); }

  void expect_silence_beside(Arrives arrived) const {
    for (const auto& [device, where] : std::map<std::string, Arrives>{{"pod0", Arrives::kInPod},
                                                                      {"outside", Arrives::kTranslated},
                                                                      {"pod1", Arrives::kNowhere},
                                                                      {"uplink", Arrives::kNowhere}}) {
      if (where == arrived && where != Arrives::kNowhere) continue;
      EXPECT_TRUE(node_.far(device).receive_all().empty()) << "something came out of " << device;
    }
  }
};

class TunnelIn : public TunnelInTest, public ::testing::WithParamInterface<Case> {};

TEST_P(TunnelIn, Claim) {
  const Case& c = GetParam();
  if (c.given != nullptr) c.given(node_);
  const Bytes inner = c.inner.bytes();
  node_.send_tunneled(c.sender, c.vni, inner);
  node_.expect_counts({{c.class_id, c.counted, 1, inner.size()}});

  if (c.arrives == Arrives::kInPod) {
    const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
    ASSERT_TRUE(frame) << "nothing came to the pod";
    EXPECT_EQ(hex_dump(frame->bytes), hex_dump(Packet(c.inner).from(kPodHostMac).to(kPodMac).bytes()));
    EXPECT_TRUE(frame->for_host) << "the pod's stack will not take it";
  } else if (c.arrives == Arrives::kTranslated) {
    const auto left = node_.next_outside();
    ASSERT_TRUE(left) << "nothing has left";
    expect_translated(*left, c.inner, kEgressIp);
  }
  expect_silence_beside(c.arrives);
  EXPECT_EQ(worker(kRemotePod).has_value(), c.arrives == Arrives::kTranslated || c.counted == EC_DROP_GATEWAY_GONE);
}

INSTANTIATE_TEST_SUITE_P(Senders, TunnelIn,
                         ::testing::Values(Case{.claim = "an unknown sender is refused as worker",
                                                .sender = kStranger,
                                                .vni = kLocalVni,
                                                .inner = outward(kOutside).udp(1, 2),
                                                .counted = EC_DROP_UNKNOWN_SENDER},
                                           Case{.claim = "an unknown sender is refused as gateway",
                                                .sender = kStranger,
                                                .vni = kTunnelVni,
                                                .inner = answer(),
                                                .counted = EC_DROP_UNKNOWN_SENDER},
                                           Case{.claim = "an unknown sender gets no answer to a probe",
                                                .sender = kStranger,
                                                .vni = EC_VNI_PROBE,
                                                .inner = outward(kOutside).udp(1, 2),
                                                .counted = EC_DROP_UNKNOWN_SENDER},
                                           Case{.claim = "a VNI of no class is refused",
                                                .sender = kWorker,
                                                .vni = 0x777777,
                                                .inner = outward(kOutside).udp(1, 2),
                                                .counted = EC_DROP_UNKNOWN_CLASS},
                                           Case{.claim = "with the datapath down nothing gets in",
                                                .given = [](Node& node) { node.set_applied(false); },
                                                .sender = kWorker,
                                                .vni = kLocalVni,
                                                .inner = outward(kOutside).udp(1, 2),
                                                .counted = EC_DROP_DATAPATH_DOWN},
                                           Case{.claim = "with the datapath down a probe has no answer",
                                                .given = [](Node& node) { node.set_applied(false); },
                                                .sender = kWorker,
                                                .vni = EC_VNI_PROBE,
                                                .inner = outward(kOutside).udp(1, 2),
                                                .counted = EC_DROP_DATAPATH_DOWN}),
                         claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    AsGateway, TunnelIn,
    ::testing::Values(Case{.claim = "a worker's packet leaves with the egress IP of its class",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).udp(1, 2).payload(1300),
                           .arrives = Arrives::kTranslated,
                           .class_id = kLocalClass,
                           .counted = EC_GATEWAY_OUT},
                      Case{.claim = "a worker's TCP leaves likewise",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).tcp(1, 2, kSyn).payload(100),
                           .arrives = Arrives::kTranslated,
                           .class_id = kLocalClass,
                           .counted = EC_GATEWAY_OUT},
                      Case{.claim = "a worker's echo leaves likewise",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).icmp(kEcho).payload(56),
                           .arrives = Arrives::kTranslated,
                           .class_id = kLocalClass,
                           .counted = EC_GATEWAY_OUT},
                      Case{.claim = "without the way into the gateway's namespace a worker's packet is dropped",
                           .given = [](Node& node) { node.cut_off_gateway(); },
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).udp(1, 2),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_GATEWAY_GONE},
                      Case{.claim = "a class whose gateway is another node is refused",
                           .sender = kWorker,
                           .vni = kTunnelVni,
                           .inner = outward(kOutside).udp(1, 2),
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_NOT_GATEWAY},
                      Case{.claim = "a class that is no more is refused",
                           .given = [](Node& node) { node.erase("classes", kLocalClass); },
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).udp(1, 2),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_UNKNOWN_CLASS},
                      Case{.claim = "the cluster is not reached by way of the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kServiceIp).udp(1, 2),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_BAD_DESTINATION},
                      Case{.claim = "nodes are not reached by way of the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kUnderlay).tcp(1, 22, kSyn),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_BAD_DESTINATION},
                      Case{.claim = "a metadata service is not reached by way of the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward("169.254.169.254").tcp(1, 80, kSyn),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_BAD_DESTINATION},
                      Case{.claim = "multicast is not reached by way of the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward("224.0.0.251").udp(5353, 5353),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_BAD_DESTINATION},
                      Case{.claim = "IPv6 is refused, since the class has no IPv6 egress IP",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).ip("fd00:244:2::7", kOutside6).udp(1, 2),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_FAMILY},
                      Case{.claim = "ARP is refused in the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = Packet().from(kWorkerMac).to(kForeignMac).arp(kRemotePod, kOutside),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "a broken IP header is refused in the tunnel",
                           .sender = kWorker,
                           .vni = kLocalVni,
                           .inner = outward(kOutside).ip_version(5).udp(1, 2),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_NOT_IP}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    AsWorker, TunnelIn,
    ::testing::Values(Case{.claim = "an answer of the gateway is put into the pod",
                           .sender = kGateway,
                           .vni = kTunnelVni,
                           .inner = answer().payload(1300),
                           .arrives = Arrives::kInPod,
                           .class_id = kTunnelClass,
                           .counted = EC_RETURNED},
                      Case{.claim = "a later fragment of an answer is put into the pod",
                           .sender = kGateway,
                           .vni = kTunnelVni,
                           .inner = answer().fragment(1, 1480, false),
                           .arrives = Arrives::kInPod,
                           .class_id = kTunnelClass,
                           .counted = EC_RETURNED},
                      Case{.claim = "an answer of another node is refused",
                           .sender = kWorker,
                           .vni = kTunnelVni,
                           .inner = answer(),
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_WRONG_GATEWAY},
                      Case{.claim = "an answer in another class of the same gateway is refused",
                           .sender = kGateway,
                           .vni = kOtherVni,
                           .inner = answer(),
                           .class_id = kOtherClass,
                           .counted = EC_DROP_WRONG_GATEWAY},
                      Case{.claim = "an answer in a class whose gateway is this node is refused",
                           .sender = kGateway,
                           .vni = kLocalVni,
                           .inner = answer().ip(kOutside, kLocalPod),
                           .class_id = kLocalClass,
                           .counted = EC_DROP_WRONG_GATEWAY},
                      Case{.claim = "an answer in a class of local path is refused, whoever its gateway is",
                           .given =
                               [](Node& node) {
                                 node.change<ec_class>("classes", kTunnelClass,
                                                       [](ec_class& c) { c.hops[0].path = EC_PATH_LOCAL; });
                               },
                           .sender = kGateway,
                           .vni = kTunnelVni,
                           .inner = answer(),
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_WRONG_GATEWAY},
                      Case{.claim = "an answer in a class that is no more is refused",
                           .given = [](Node& node) { node.erase("classes", kTunnelClass); },
                           .sender = kGateway,
                           .vni = kTunnelVni,
                           .inner = answer(),
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_UNKNOWN_CLASS},
                      Case{.claim = "an answer to a pod that has gone is nobody's",
                           .given = [](Node& node) { node.erase("endpoints", ec(kPod)); },
                           .sender = kGateway,
                           .vni = kTunnelVni,
                           .inner = answer(),
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_NOT_GATEWAY}),
    claim_as_name<Case>);

TEST_F(TunnelInTest, FragmentsOfAWorkersPacketLeaveLikewise) {
  const Packet first = outward(kOutside).fragment(77, 0, true).udp(1, 2).payload(992);
  const Packet later = outward(kOutside).fragment(77, 1000, false).protocol(17).payload(100);
  for (const Packet& fragment : {first, later}) node_.send_tunneled(kWorker, kLocalVni, fragment.bytes());
  for (const Packet& fragment : {first, later}) {
    const auto left = node_.next_outside();
    ASSERT_TRUE(left) << "nothing has left";
    expect_translated(*left, fragment, kEgressIp);
  }
  node_.expect_counts({{kLocalClass, EC_GATEWAY_OUT, 2, first.bytes().size() + later.bytes().size()}});
}

TEST_F(TunnelInTest, AWorkerIsLearnedAndLearnedAgainWhenItsPodMoves) {
  const Bytes inner = outward(kOutside).udp(1, 2).bytes();
  node_.send_tunneled(kWorker, kLocalVni, inner);
  ASSERT_TRUE(node_.next_outside());
  ASSERT_TRUE(worker(kRemotePod));
  EXPECT_EQ(from_ec(worker(kRemotePod)->node).str(), kWorker);
  EXPECT_EQ(worker(kRemotePod)->class_id, kLocalClass);

  node_.send_tunneled(kSecondWorker, kLocalVni, inner);
  ASSERT_TRUE(node_.next_outside());
  EXPECT_EQ(from_ec(worker(kRemotePod)->node).str(), kSecondWorker) << "the pod has moved to another node";
}

TEST_F(TunnelInTest, AWorkerIsLearnedAgainWhenItsPodChangesClass) {
  node_.put("workers", ec(kRemotePod),
            ec_worker{.node = ec(kWorker), .gateway = ec(kUnderlay), .class_id = kOtherClass, .pad = 0});
  node_.send_tunneled(kWorker, kLocalVni, outward(kOutside).udp(1, 2).bytes());
  ASSERT_TRUE(node_.next_outside());
  EXPECT_EQ(worker(kRemotePod)->class_id, kLocalClass);
}

TEST_F(TunnelInTest, AVlanTagInTheTunnelIsNotIp) {
  node_.send_tunneled(kWorker, kLocalVni, outward(kOutside).vlan(7).udp(1, 2).bytes());
  node_.expect_counts({{kLocalClass, EC_DROP_NOT_IP, 1, 42}});
  expect_silence_beside(Arrives::kNowhere);
}

TEST_F(TunnelInTest, APacketThatCameThroughNoTunnelIsRefused) {
  const Bytes packet = outward(kOutside).udp(1, 2).bytes();
  EXPECT_EQ(node_.run(Program::kTunnelIn, packet, node_.ifindex("egress0")).action, Action::kDrop);
  node_.expect_counts({{0, EC_DROP_STRAY, 1, packet.size()}});
}

// --- probes ------------------------------------------------------------------------------------------------------

TEST_F(TunnelInTest, AProbeIsReturnedAsAnswerFromTheAddressThatWasProbed) {
  const Packet probe = outward(kOutside).udp(1, 2).payload(18);
  ASSERT_EQ(probe.bytes().size(), 60U);
  node_.send_tunneled(kWorker, EC_VNI_PROBE, probe.bytes(), kSecondAddress);
  const auto returned = node_.next_tunneled();
  ASSERT_TRUE(returned) << "no answer is on the wire";
  EXPECT_EQ(returned->vni, EC_VNI_ANSWER);
  EXPECT_EQ(returned->src, kSecondAddress);
  EXPECT_EQ(returned->dst, kWorker);
  EXPECT_EQ(hex_dump(returned->inner), hex_dump(in_tunnel(probe, kSecondAddress, kWorker).bytes()));
  node_.expect_counts({{0, EC_PROBE_ANSWERED, 1, 60}});
  EXPECT_FALSE(worker(kRemotePod)) << "a probe teaches nothing";
}

class GatewayRecord : public TunnelInTest {
 protected:
  // A gateway that has not been heard for long, with a probe under way.
  GatewayRecord() {
    node_.put("gateways", ec(kGateway),
              ec_gateway{.last_seen_ns = 1, .last_probe_ns = 2, .unanswered = EC_PROBES_UNANSWERED, .pad = 0});
  }

  ec_gateway record() const { return node_.find<ec_gateway>("gateways", ec(kGateway)).value(); }

  void expect_seen() const {
    const auto deadline = monotonic_ns() + 2'000'000'000U;
    while (record().unanswered != 0 && monotonic_ns() < deadline) continue;
    EXPECT_EQ(record().unanswered, 0U);
    EXPECT_LT(monotonic_ns() - record().last_seen_ns, EC_PROBE_INTERVAL_NS * 8);
    EXPECT_EQ(record().last_probe_ns, 2U);
  }

  void expect_not_seen() const {
    EXPECT_EQ(record().unanswered, static_cast<std::uint32_t>(EC_PROBES_UNANSWERED));
    EXPECT_EQ(record().last_seen_ns, 1U);
  }
};

TEST_F(GatewayRecord, AnAnswerToAProbeMakesTheGatewayReachableAndEndsHere) {
  // The kernel would take it, and route it.
  const Packet routable = Packet().from(kGatewayMac).to(kTunnelDeviceMac).ip(kRemotePod, kGateway);
  node_.send_tunneled(kGateway, EC_VNI_ANSWER, Packet(routable).udp(1, 2).bytes());
  expect_seen();
  expect_silence_beside(Arrives::kNowhere);
  node_.expect_counts({});
}

TEST_F(GatewayRecord, AnAnswerToAPodMakesTheGatewayReachable) {
  node_.send_tunneled(kGateway, kTunnelVni, answer().bytes());
  expect_seen();
}

TEST_F(GatewayRecord, AnswersOfOtherNodesSayNothingOfIt) {
  node_.send_tunneled(kWorker, EC_VNI_ANSWER, answer().bytes());
  node_.send_tunneled(kStranger, EC_VNI_ANSWER, answer().bytes());
  node_.expect_counts({{0, EC_DROP_UNKNOWN_SENDER, 1, answer().bytes().size()}});
  expect_not_seen();
  EXPECT_FALSE(node_.find<ec_gateway>("gateways", ec(kWorker))) << "a record comes from the configuration alone";
}

TEST_F(GatewayRecord, ARefusedAnswerToAPodSaysNothingOfIt) {
  node_.send_tunneled(kGateway, kOtherVni, answer().bytes());
  node_.expect_counts({{kOtherClass, EC_DROP_WRONG_GATEWAY, 1, answer().bytes().size()}});
  expect_not_seen();
}

TEST_F(GatewayRecord, AnAnswerCountsHoweverLatelyTheGatewayWasSeen) {
  node_.put("gateways", ec(kGateway),
            ec_gateway{.last_seen_ns = monotonic_ns(), .last_probe_ns = 2, .unanswered = 1, .pad = 0});
  node_.send_tunneled(kGateway, EC_VNI_ANSWER, answer().bytes());
  expect_seen();
}

TEST_F(GatewayRecord, IsNotWrittenWithEveryPacket) {
  const std::uint64_t lately = monotonic_ns();
  node_.put("gateways", ec(kGateway),
            ec_gateway{.last_seen_ns = lately, .last_probe_ns = 2, .unanswered = 0, .pad = 0});
  node_.send_tunneled(kGateway, kTunnelVni, answer().bytes());
  node_.expect_counts({{kTunnelClass, EC_RETURNED, 1, answer().bytes().size()}});
  if (monotonic_ns() - lately < EC_PROBE_INTERVAL_NS / 4) {
    EXPECT_EQ(record().last_seen_ns, lately);
  }
}

TEST_F(GatewayRecord, IsWrittenWhenItGetsOld) {
  const std::uint64_t before = monotonic_ns() - EC_PROBE_INTERVAL_NS;
  node_.put("gateways", ec(kGateway),
            ec_gateway{.last_seen_ns = before, .last_probe_ns = 2, .unanswered = 0, .pad = 0});
  node_.send_tunneled(kGateway, kTunnelVni, answer().bytes());
  node_.expect_counts({{kTunnelClass, EC_RETURNED, 1, answer().bytes().size()}});
  EXPECT_GT(record().last_seen_ns, before);
}

}  // namespace
}  // namespace egressclass
