// SPDX-License-Identifier: Apache-2.0
// classify and nexthop_in: a class whose gateway is a router on a link of the node.
#include <netinet/in.h>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint8_t kEcho = 8;
constexpr std::uint8_t kEchoReply = 0;
constexpr std::uint8_t kUnreachable = 3;
constexpr std::uint8_t kEcho6 = 128;
constexpr std::uint8_t kEchoReply6 = 129;
constexpr std::uint8_t kPacketTooBig6 = 2;

constexpr const char* kUnresolved = "203.0.113.99";  // nobody has that address

std::string by_next_hop(const char* address, const char* more = "") {
  return R"("destinations": ["0.0.0.0/0", "::/0"], "gateways": [{"via": "nexthop", "interface": "outside",
            "address": ")" +
         std::string(address) + "\"}]" + more;
}

std::string by_both() {
  return R"("destinations": ["0.0.0.0/0", "::/0"], "gateways": [
            {"via": "nexthop", "interface": "outside", "address": "203.0.113.1"},
            {"via": "nexthop", "interface": "outside", "address": "2001:db8:113::1"}])";
}

/// As a router has it, between these MAC addresses.
Bytes forwarded(Packet packet, const Mac& from, const Mac& to) { return packet.ttl(63).from(from).to(to).bytes(); }

class NextHopTest : public DatapathTest {
 protected:
  NextHopTest() : id_(node_.configure_class(by_both())) {}

  void expect_on_the_link(const Packet& packet) {
    node_.far("pod0").send(packet.bytes());
    const auto routed = node_.next_outside();
    ASSERT_TRUE(routed) << "nothing came to the next hop";
    EXPECT_EQ(hex_dump(*routed), hex_dump(forwarded(packet, kOutsideMac, kNextHopMac)));
  }

  /// What the next hop sends to the node.
  void send_back(const Packet& packet) { node_.far("outside").send(packet.bytes()); }

  void expect_in_pod(const Packet& packet) {
    send_back(packet);
    const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
    ASSERT_TRUE(frame) << "nothing came to the pod";
    EXPECT_EQ(hex_dump(frame->bytes), hex_dump(forwarded(packet, kPodHostMac, kPodMac)));
    EXPECT_TRUE(frame->for_host) << "the pod's stack will not take it";
  }

  void expect_not_returned(const Packet& packet) {
    const std::uint64_t before = node_.counted(EC_RETURNED);
    const Outcome outcome = node_.run(Program::kNexthopIn, packet.bytes(), node_.ifindex("outside"));
    EXPECT_EQ(outcome.action, Action::kNext) << "it is not the kernel's" << packet;
    EXPECT_EQ(hex_dump(outcome.data), hex_dump(packet.bytes()));
    EXPECT_EQ(node_.counted(EC_RETURNED), before);
  }

  std::uint32_t id_;
};

Packet answers(const char* src = kOutside) {
  return Packet().from(kNextHopMac).to(kOutsideMac).ip(src, Ip::parse(src)->is_v4() ? kPod : kPod6);
}

// --- out ---------------------------------------------------------------------------------------------------------

TEST_F(NextHopTest, APacketGoesToTheNextHopAsARouterSendsIt) {
  const Packet packet = pod_sends(kOutside).udp(1, 2).payload(1300);
  expect_on_the_link(packet);
  node_.expect_counts({{id_, EC_STEERED_NEXTHOP, 1, packet.bytes().size()}});
}

TEST_F(NextHopTest, AnIpv6PacketGoesToTheNextHopOfItsFamily) {
  const Packet packet = pod_sends(kOutside6).tcp(1, 2, kSyn).payload(900);
  expect_on_the_link(packet);
  node_.expect_counts({{id_, EC_STEERED_NEXTHOP, 1, packet.bytes().size()}});
}

TEST_F(NextHopTest, OptionsAndExtensionHeadersGoWithIt) {
  expect_on_the_link(pod_sends(kOutside).ip_header_words(9).udp(1, 2));
  expect_on_the_link(pod_sends(kOutside6).extension(IPPROTO_DSTOPTS, 24).udp(1, 2));
  expect_on_the_link(pod_sends(kOutside).protocol(253).payload(64));
}

TEST_F(NextHopTest, ThePacketKeepsItsMarkForTheLink) {
  const Outcome outcome = node_.classify(pod_sends(kOutside).udp(1, 2), "pod0", 0xa5a50000 | kMask);
  EXPECT_EQ(outcome.action, Action::kRedirect);
  EXPECT_EQ(outcome.mark, 0xa5a50000 | mark_of(id_));
}

TEST_F(NextHopTest, TheLastHopIsTheKernelsToTell) {
  for (const std::uint8_t ttl : Bytes{0, 1}) {
    for (const char* dst : {kOutside, kOutside6}) {
      const Packet packet = pod_sends(dst).udp(1, 2).ttl(ttl);
      const Outcome outcome = node_.classify(packet);
      EXPECT_EQ(outcome.action, Action::kNext);
      EXPECT_EQ(hex_dump(outcome.data), hex_dump(packet.bytes()));
    }
  }
  EXPECT_EQ(node_.counted(EC_STEERED_NEXTHOP), 0U);
  EXPECT_EQ(node_.classify(pod_sends(kOutside).udp(1, 2).ttl(2)).action, Action::kRedirect);
}

TEST_F(NextHopTest, AFamilyWithoutANextHopIsDropped) {
  const std::uint32_t id = node_.configure_class(by_next_hop(kNextHop));
  const Packet packet = pod_sends(kOutside6).udp(1, 2);
  EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
  node_.expect_counts({{id, EC_DROP_FAMILY, 1, packet.bytes().size()}});
}

TEST_F(NextHopTest, WhatIsLongerThanTheLinkTakesAndMayNotBeFragmentedIsAnswered) {
  const Packet packet = pod_sends(kOutside).dont_fragment().udp(1, 2).payload(1473);
  EXPECT_EQ(node_.classify(packet).action, Action::kRedirect);
  const Packet packet6 = pod_sends(kOutside6).udp(1, 2).payload(1453);
  EXPECT_EQ(node_.classify(packet6).action, Action::kRedirect);
  node_.expect_counts({{id_, EC_TOO_BIG, 2, packet.bytes().size() + packet6.bytes().size()}});
}

TEST_F(NextHopTest, WhatIsLongerThanTheLinkTakesIsDroppedOtherwise) {
  const Packet longest = pod_sends(kOutside).udp(1, 2).payload(1472);
  const Packet packet = pod_sends(kOutside).udp(1, 2).payload(1473);
  EXPECT_EQ(node_.classify(longest).action, Action::kRedirect);
  EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
  node_.expect_counts(
      {{id_, EC_STEERED_NEXTHOP, 1, longest.bytes().size()}, {id_, EC_DROP_TOO_LONG, 1, packet.bytes().size()}});
}

// --- the neighbour -----------------------------------------------------------------------------------------------

TEST_F(NextHopTest, ANeighbourThatIsKnownIsReachable) {
  for (const char* address : {kNextHop, kNextHop6}) node_.put("gateways", ec(address), ec_gateway{});
  EXPECT_EQ(node_.classify(pod_sends(kOutside).udp(1, 2)).action, Action::kRedirect);
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).udp(1, 2)).action, Action::kRedirect);
  for (const char* address : {kNextHop, kNextHop6}) {
    const auto gateway = node_.find<ec_gateway>("gateways", ec(address));
    EXPECT_EQ(gateway->unanswered, 0U);
    EXPECT_NE(gateway->last_seen_ns, 0U);
  }
  EXPECT_EQ(node_.counted(EC_PROBE_SENT), 0U);
}

TEST_F(NextHopTest, ANeighbourThatDoesNotResolveIsUnreachableAfterSoManyLooks) {
  const std::uint32_t id = node_.configure_class(by_next_hop(kUnresolved));
  const Packet packet = pod_sends(kOutside).udp(1, 2);
  const auto pass_interval = [&] {
    node_.change<ec_gateway>("gateways", ec(kUnresolved), [](ec_gateway& gateway) {
      gateway.last_seen_ns -= EC_PROBE_INTERVAL_NS;
      gateway.last_probe_ns -= EC_PROBE_INTERVAL_NS;
    });
  };
  node_.put("gateways", ec(kUnresolved), ec_gateway{monotonic_ns(), monotonic_ns(), 0, 0});
  for (int look = 0; look < EC_PROBES_UNANSWERED; ++look) {
    pass_interval();
    EXPECT_EQ(node_.classify(packet).action, Action::kRedirect) << "at look " << look;
  }
  EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
  const std::uint64_t size = packet.bytes().size();
  node_.expect_counts({{id, EC_STEERED_NEXTHOP, 4, 4 * size},
                       {id, EC_PROBE_SENT, 4, 4 * size},
                       {id, EC_DROP_GATEWAY_UNREACHABLE, 1, size}});
}

TEST_F(NextHopTest, WhatIsSentMakesTheKernelAskForTheNeighbour) {
  node_.configure_class(by_next_hop(kUnresolved));
  node_.put("gateways", ec(kUnresolved), ec_gateway{0, 0, EC_PROBES_UNANSWERED, 0});
  node_.far("pod0").send(pod_sends(kOutside).udp(1, 2).bytes());
  const auto frame = node_.next_outside();
  ASSERT_TRUE(frame) << "nobody asks for the next hop";
  EXPECT_EQ((*frame)[12] << 8U | (*frame)[13], 0x0806) << "it is no ARP";
}

TEST_F(NextHopTest, AFlowAvoidsANextHopThatIsUnreachable) {
  node_.configure_class(R"("destinations": ["0.0.0.0/0"], "egressIPs": ["203.0.113.21"], "spread": "flow", "gateways": [
      {"via": "nexthop", "interface": "outside", "address": "203.0.113.99"}, {"address": "192.0.2.21"}])");
  node_.lose_gateway(kUnresolved);
  for (std::uint16_t port = 1; port <= 50; ++port)
    EXPECT_EQ(node_.gateway_of(node_.classify(pod_sends(kOutside).udp(port, 2))), kGateway);
}

// --- back --------------------------------------------------------------------------------------------------------

TEST_F(NextHopTest, AnAnswerIsPutIntoThePod) {
  node_.classify(pod_sends(kOutside).tcp(40000, 443, kSyn));
  const Packet answer = answers().tcp(443, 40000, kSyn | kAck).payload(1300);
  expect_in_pod(answer);
  node_.expect_counts({{id_, EC_STEERED_NEXTHOP, 1, 54}, {id_, EC_RETURNED, 1, answer.bytes().size()}});
}

TEST_F(NextHopTest, AnIpv6AnswerIsPutIntoThePod) {
  node_.classify(pod_sends(kOutside6).udp(40000, 443));
  expect_in_pod(answers(kOutside6).udp(443, 40000).payload(900));
  expect_in_pod(answers(kOutside6).extension(IPPROTO_DSTOPTS).udp(443, 40000));
}

TEST_F(NextHopTest, AnEchoReplyIsPutIntoThePod) {
  node_.classify(pod_sends(kOutside).icmp(kEcho));
  node_.classify(pod_sends(kOutside6).icmp(kEcho6));
  expect_in_pod(answers().icmp(kEchoReply));
  expect_in_pod(answers(kOutside6).icmp(kEchoReply6));
}

TEST_F(NextHopTest, AnAnswerOfAProtocolWithoutPortsIsPutIntoThePod) {
  node_.classify(pod_sends(kOutside).protocol(IPPROTO_GRE).payload(32));
  expect_in_pod(answers().protocol(IPPROTO_GRE).payload(32));
}

TEST_F(NextHopTest, AnErrorAboutAFlowIsPutIntoThePod) {
  const Packet sent = pod_sends(kOutside).udp(40000, 443);
  const Packet sent6 = pod_sends(kOutside6).tcp(40000, 443, kSyn);
  node_.classify(sent);
  node_.classify(sent6);
  expect_in_pod(answers("203.0.113.1").icmp(kUnreachable, 1).about(sent));
  expect_in_pod(answers("2001:db8:113::1").icmp(kPacketTooBig6).about(sent6));
}

TEST_F(NextHopTest, FragmentsOfAnAnswerArePutIntoThePod) {
  node_.classify(pod_sends(kOutside).udp(40000, 443));
  expect_in_pod(answers().fragment(7, 0, true).udp(443, 40000).payload(1472));
  expect_in_pod(answers().fragment(7, 1480, false).protocol(IPPROTO_UDP).payload(100));
  expect_not_returned(answers().fragment(8, 1480, false).protocol(IPPROTO_UDP).payload(100));
}

TEST_F(NextHopTest, FragmentsOfAnIpv6AnswerArePutIntoThePod) {
  node_.classify(pod_sends(kOutside6).udp(40000, 443));
  expect_in_pod(answers(kOutside6).fragment(7, 0, true).extension(IPPROTO_DSTOPTS).udp(443, 40000).payload(1000));
  expect_in_pod(answers(kOutside6).fragment(7, 1016, false).protocol(IPPROTO_DSTOPTS).payload(100));
}

TEST_F(NextHopTest, WhatIsOfNoFlowOfAPodIsTheKernels) {
  node_.classify(pod_sends(kOutside).udp(40000, 443));
  node_.classify(pod_sends(kOutside).icmp(kEcho));
  expect_not_returned(answers().udp(443, 40001));
  expect_not_returned(answers().udp(444, 40000));
  expect_not_returned(answers().tcp(443, 40000));
  expect_not_returned(answers("198.51.100.8").udp(443, 40000));
  expect_not_returned(answers().ip(kOutside, kLocalPod).udp(443, 40000));
  expect_not_returned(answers().ip(kOutside, kRemotePod).udp(443, 40000));
  expect_not_returned(answers().icmp(kUnreachable, 1).about(pod_sends(kOutside).udp(40001, 443)));
  expect_not_returned(answers().icmp(kUnreachable, 1).about(Packet().ip(kLocalPod, kOutside).udp(40000, 443)));
  expect_not_returned(Packet().from(kNextHopMac).to(kOutsideMac).arp(kOutside, kPod));
  expect_not_returned(answers().udp(443, 40000).vlan(7));
}

TEST_F(NextHopTest, TheLastHopOfAnAnswerIsTheKernelsToTell) {
  node_.classify(pod_sends(kOutside).udp(40000, 443));
  expect_not_returned(answers().udp(443, 40000).ttl(1));
  expect_in_pod(answers().udp(443, 40000));
}

TEST_F(NextHopTest, WithTheDatapathDownNothingIsReturned) {
  node_.classify(pod_sends(kOutside).udp(40000, 443));
  node_.set_applied(false);
  expect_not_returned(answers().udp(443, 40000));
}

TEST_F(NextHopTest, AFlowByTheTunnelHasNoAnswersHere) {
  const std::string destinations = R"("destinations": ["0.0.0.0/0"], )";
  node_.configure_class(destinations + R"("egressIPs": ["203.0.113.21"], "gateways": [{"address": "192.0.2.21"}])");
  EXPECT_EQ(node_.gateway_of(node_.classify(pod_sends(kOutside).udp(40000, 443))), kGateway);
  expect_not_returned(answers().udp(443, 40000));
}

TEST_F(NextHopTest, AFlowOfAnotherClassOfThePodHasNoAnswersHere) {
  node_.classify(pod_sends(kOutside).udp(40000, 443));
  node_.put_pod("pod0", id_ + 1);
  expect_not_returned(answers().udp(443, 40000));
}

}  // namespace
}  // namespace egressclass
