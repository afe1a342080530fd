// SPDX-License-Identifier: Apache-2.0
// classify and the tunnel with IPv6: extension headers, fragments, flows, and an underlay of either family.
#include <netinet/in.h>

#include <cstring>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint8_t kUnreachable6 = 1;
constexpr std::uint8_t kEcho6 = 128;
constexpr std::uint8_t kEchoReply6 = 129;
constexpr std::uint8_t kEcho = 8;
constexpr std::size_t kHeaders = 14 + 40;

constexpr const char* kEgressIp6 = "2001:db8:113::21";
constexpr const char* kRemotePod6 = "fd00:244:2::7";  // on kWorker

std::string by_gateway(const char* address) {
  return R"("destinations": ["0.0.0.0/0", "::/0"], "egressIPs": ["203.0.113.21", "2001:db8:113::21"],
            "gateways": [{"address": ")" +
         std::string(address) + R"("}])";
}

// What conntrack knows: another opened a flow to the pod, or the pod did.
std::string inbound(const char* protocol) {
  const bool tcp = std::string(protocol) == "tcp";
  return std::string("-p ") + protocol + " -s " + kOutside6 + " --sport 5555 -d " + kPod6 + " --dport 80" +
         (tcp ? " --state ESTABLISHED" : "") + " -u SEEN_REPLY,ASSURED";
}

std::string own(const char* protocol) {
  return std::string("-p ") + protocol + " -s " + kPod6 + " --sport 80 -d " + kOutside6 +
         " --dport 5555 -u SEEN_REPLY,ASSURED";
}

Packet request() { return Packet().ip(kOutside6, kPod6); }  // what the pod has got in such a flow

struct Case {
  const char* claim;
  std::vector<std::string> tracked = {};
  Packet packet;
  ec_event counted;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.claim << ", given" << c.packet; }

class Ipv6Test : public DatapathTest {
 protected:
  Ipv6Test() : id_(node_.configure_class(by_gateway(kGateway))) {}
  std::uint32_t mark_of_class() const { return mark_of(id_); }
  std::uint32_t id_;
};

class Ipv6 : public Ipv6Test, public ::testing::WithParamInterface<Case> {};

TEST_P(Ipv6, Claim) {
  const Case& c = GetParam();
  for (const std::string& tracked : c.tracked) node_.track(tracked);
  const Outcome outcome = node_.classify(c.packet);
  if (c.counted == EC_STEERED_TUNNEL) {
    EXPECT_EQ(outcome.action, Action::kRedirect);
    EXPECT_EQ(outcome.mark, mark_of_class());
    EXPECT_EQ(hex_dump(outcome.data), hex_dump(in_tunnel(c.packet, kUnderlay, kGateway).bytes()));
  } else if (c.counted == EC_REPLIED) {
    EXPECT_EQ(outcome.action, Action::kNext);
    EXPECT_EQ(outcome.mark, reply_mark(kMask));
    EXPECT_EQ(hex_dump(outcome.data), hex_dump(Packet(c.packet).to(kPodHostMac).bytes()));
  } else {
    EXPECT_EQ(outcome.action, Action::kDrop);
  }
  node_.expect_counts({{id_, c.counted, 1, c.packet.bytes().size()}});
}

Packet with_extensions(int count, std::uint8_t type = IPPROTO_DSTOPTS) {
  Packet packet = pod_sends(kOutside6).tcp(80, 5555);
  for (int i = 0; i < count; ++i) packet.extension(type, i % 2 == 0 ? 8 : 24);
  return packet;
}

INSTANTIATE_TEST_SUITE_P(
    Headers, Ipv6,
    ::testing::Values(
        Case{.claim = "TCP is steered", .packet = pod_sends(kOutside6).tcp(80, 5555), .counted = EC_STEERED_TUNNEL},
        Case{.claim = "UDP is steered", .packet = pod_sends(kOutside6).udp(80, 5555), .counted = EC_STEERED_TUNNEL},
        Case{.claim = "ping is steered", .packet = pod_sends(kOutside6).icmp(kEcho6), .counted = EC_STEERED_TUNNEL},
        Case{.claim = "what has no next header is steered",
             .packet = pod_sends(kOutside6).protocol(IPPROTO_NONE).payload(16),
             .counted = EC_STEERED_TUNNEL},
        Case{.claim = "TCP without flags is not IP",
             .packet = pod_sends(kOutside6).tcp(80, 5555).cut(kHeaders + 13),
             .counted = EC_DROP_NOT_IP},
        Case{.claim = "UDP without ports is not IP",
             .packet = pod_sends(kOutside6).udp(80, 5555).cut(kHeaders + 3),
             .counted = EC_DROP_NOT_IP},
        Case{.claim = "six extension headers are enough", .packet = with_extensions(6), .counted = EC_STEERED_TUNNEL},
        Case{.claim = "seven are too many", .packet = with_extensions(7), .counted = EC_DROP_NOT_IP},
        Case{.claim = "a cut extension header is not IP",
             .packet = with_extensions(1).cut(kHeaders + 7),
             .counted = EC_DROP_NOT_IP},
        Case{.claim = "an extension header longer than the packet is not IP",
             .packet = with_extensions(1).extension(IPPROTO_DSTOPTS, 2048).cut(kHeaders + 100),
             .counted = EC_DROP_NOT_IP}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Replies, Ipv6,
    ::testing::Values(
        Case{"TCP answers", {inbound("tcp")}, pod_sends(kOutside6).tcp(80, 5555), EC_REPLIED},
        Case{"UDP answers", {inbound("udp")}, pod_sends(kOutside6).udp(80, 5555), EC_REPLIED},
        Case{"SYN never answers", {inbound("tcp")}, pod_sends(kOutside6).tcp(80, 5555, kSyn), EC_STEERED_TUNNEL},
        Case{"another port answers nothing", {inbound("udp")}, pod_sends(kOutside6).udp(80, 5556), EC_STEERED_TUNNEL},
        Case{"the pod's own flow is steered", {own("udp")}, pod_sends(kOutside6).udp(80, 5555), EC_STEERED_TUNNEL},
        Case{"TCP answers behind extension headers",
             {inbound("tcp")},
             with_extensions(2).extension(IPPROTO_ROUTING, 24),
             EC_REPLIED},
        Case{"TCP answers behind the most extension headers", {inbound("tcp")}, with_extensions(6), EC_REPLIED},
        Case{"SYN is found behind extension headers",
             {inbound("tcp")},
             with_extensions(3, IPPROTO_HOPOPTS).tcp(80, 5555, kSyn),
             EC_STEERED_TUNNEL},
        Case{"an echo reply answers", {}, pod_sends(kOutside6).icmp(kEchoReply6), EC_REPLIED},
        Case{"an echo reply of IPv4 is none of IPv6",
             {},
             pod_sends(kOutside6).protocol(IPPROTO_ICMP).payload(Bytes{0, 0, 0, 0, 0, 1, 0, 1}),
             EC_STEERED_TUNNEL},
        Case{"an error about a flow to the pod answers",
             {inbound("udp")},
             pod_sends(kOutside6).icmp(kUnreachable6, 4).about(request().udp(5555, 80)),
             EC_REPLIED},
        Case{"an error about a packet with extension headers answers",
             {inbound("udp")},
             pod_sends(kOutside6)
                 .extension(IPPROTO_DSTOPTS)
                 .icmp(kUnreachable6, 4)
                 .about(request().extension(IPPROTO_HOPOPTS, 16).extension(IPPROTO_DSTOPTS).udp(5555, 80)),
             EC_REPLIED},
        Case{"an error about another port is steered",
             {inbound("udp")},
             pod_sends(kOutside6).icmp(kUnreachable6, 4).about(request().udp(5555, 81)),
             EC_STEERED_TUNNEL},
        Case{"an error about what another pod received is steered",
             {inbound("udp")},
             pod_sends(kOutside6).icmp(kUnreachable6, 4).about(Packet().ip(kOutside6, kLocalPod6).udp(5555, 80)),
             EC_STEERED_TUNNEL}),
    claim_as_name<Case>);

// --- whose packet it is ------------------------------------------------------------------------------------------

struct Discovery {
  const char* claim;
  Packet packet;
  ec_event counted;
};

std::ostream& operator<<(std::ostream& out, const Discovery& c) { return out << c.claim << ", given" << c.packet; }

class NeighbourDiscovery : public Ipv6Test, public ::testing::WithParamInterface<Discovery> {};

TEST_P(NeighbourDiscovery, Claim) {
  const Discovery& c = GetParam();
  const Outcome outcome = node_.classify(c.packet);
  EXPECT_EQ(outcome.action, c.counted == EC_BYPASSED ? Action::kNext : Action::kDrop);
  node_.expect_counts({{id_, c.counted, 1, c.packet.bytes().size()}});
}

Packet from_link_local(std::uint8_t type) {
  return pod_sends(kOutside6).ip("fe80::5", "2001:db8:244::1").ttl(255).icmp(type).payload(16);
}

INSTANTIATE_TEST_SUITE_P(
    LinkLocal, NeighbourDiscovery,
    ::testing::Values(
        Discovery{"a solicitation to an address beyond the link bypasses", from_link_local(135), EC_BYPASSED},
        Discovery{"an advertisement to an address beyond the link bypasses", from_link_local(136), EC_BYPASSED},
        Discovery{"a redirect is spoofed", from_link_local(137), EC_DROP_SPOOFED},
        Discovery{"ping is spoofed", from_link_local(kEcho6), EC_DROP_SPOOFED},
        Discovery{"UDP is spoofed", from_link_local(135).udp(0x8700, 1), EC_DROP_SPOOFED},
        Discovery{"a solicitation that was forwarded is spoofed", from_link_local(135).ttl(254), EC_DROP_SPOOFED},
        Discovery{"a solicitation in fragments is spoofed", from_link_local(135).fragment(1, 0, true), EC_DROP_SPOOFED},
        Discovery{"a solicitation from an address of nobody is spoofed",
                  from_link_local(135).ip("fec0::5", "2001:db8:244::1"), EC_DROP_SPOOFED}),
    claim_as_name<Discovery>);

TEST_F(Ipv6Test, AnIpv4AddressOfThePodIsNoneInAnIpv6Header) {
  Bytes packet = pod_sends(kOutside6).udp(1, 2).bytes();
  const ec_ip mapped = ec(kPod);
  std::memcpy(packet.data() + 14 + 8, &mapped, sizeof(mapped));
  EXPECT_EQ(node_.run(Program::kClassify, packet, node_.ifindex("pod0")).action, Action::kDrop);
  node_.expect_counts({{id_, EC_DROP_SPOOFED, 1, packet.size()}});
}

// --- fragments ---------------------------------------------------------------------------------------------------

Packet first_fragment(std::uint16_t id) { return pod_sends(kOutside6).fragment(id, 0, true); }

Packet later_fragment(std::uint16_t id, std::uint8_t protocol = IPPROTO_UDP) {
  return pod_sends(kOutside6).fragment(id, 1232, false).protocol(protocol).payload(400);
}

TEST_F(Ipv6Test, LaterFragmentsOfAReplyFollowItsFirst) {
  node_.track(inbound("udp"));
  EXPECT_EQ(node_.classify(first_fragment(1).udp(80, 5555).payload(1224)).mark, reply_mark(kMask));
  EXPECT_EQ(node_.classify(later_fragment(1)).mark, reply_mark(kMask));
  EXPECT_EQ(node_.classify(later_fragment(2)).mark, mark_of_class()) << "another packet's id";
}

TEST_F(Ipv6Test, LaterFragmentsFollowWhatTheFirstOneHasBehindExtensionHeaders) {
  node_.track(inbound("udp"));
  const Packet first = first_fragment(1).extension(IPPROTO_DSTOPTS).udp(80, 5555).payload(1216);
  EXPECT_EQ(node_.classify(first).mark, reply_mark(kMask));
  EXPECT_EQ(node_.classify(later_fragment(1, IPPROTO_DSTOPTS)).mark, reply_mark(kMask));
}

TEST_F(Ipv6Test, ExtensionHeadersBeforeTheFragmentHeaderAreNoMatter) {
  node_.track(inbound("udp"));
  const auto sends = [] { return pod_sends(kOutside6).extension(IPPROTO_HOPOPTS).extension(IPPROTO_ROUTING, 24); };
  EXPECT_EQ(node_.classify(sends().fragment(1, 0, true).udp(80, 5555).payload(1200)).mark, reply_mark(kMask));
  EXPECT_EQ(node_.classify(sends().fragment(1, 1208, false).protocol(IPPROTO_UDP).payload(8)).mark, reply_mark(kMask));
}

TEST_F(Ipv6Test, APacketInOneFragmentIsWhole) {
  node_.track(inbound("udp"));
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).fragment(1, 0, false).udp(80, 5555)).mark, reply_mark(kMask));
  EXPECT_EQ(node_.classify(later_fragment(1)).mark, mark_of_class()) << "it is not remembered";
}

TEST_F(Ipv6Test, AFirstFragmentThatEndsBeforeItsPortsIsDropped) {
  const Packet first = first_fragment(1).extension(IPPROTO_DSTOPTS).udp(80, 5555).cut(kHeaders + 16);
  EXPECT_EQ(node_.classify(first).action, Action::kDrop);
  node_.expect_counts({{id_, EC_DROP_NOT_IP, 1, first.bytes().size()}});
}

// --- flows -------------------------------------------------------------------------------------------------------

TEST_F(Ipv6Test, AFlowOfThePodStaysSteeredWhateverConntrackComesToBelieve) {
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).tcp(80, 5555, kSyn)).mark, mark_of_class());
  node_.track(inbound("tcp"));
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).tcp(80, 5555)).mark, mark_of_class());
}

TEST_F(Ipv6Test, AnErrorAboutTheClassesFlowIsSteeredWithIt) {
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).udp(80, 5555)).mark, mark_of_class());
  node_.track(inbound("udp"));
  const Packet error = pod_sends(kOutside6).icmp(kUnreachable6, 4).about(request().udp(5555, 80));
  EXPECT_EQ(node_.classify(error).mark, mark_of_class());
}

// --- the underlay ------------------------------------------------------------------------------------------------

struct Underlay {
  const char* claim;
  const char* gateway;
  const char* from;
  Packet packet;
};

std::ostream& operator<<(std::ostream& out, const Underlay& c) { return out << c.claim; }

class Ipv6Underlay : public DatapathTest, public ::testing::WithParamInterface<Underlay> {};

TEST_P(Ipv6Underlay, IsThatOfTheGateway) {
  const Underlay& c = GetParam();
  node_.configure_class(by_gateway(c.gateway));
  node_.far("pod0").send(c.packet.bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->src, c.from);
  EXPECT_EQ(tunneled->dst, c.gateway);
  EXPECT_EQ(tunneled->checksum != 0, std::string(c.gateway) == kGateway6) << "zero is not for IPv6";
  EXPECT_EQ(hex_dump(tunneled->inner), hex_dump(in_tunnel(c.packet, c.from, c.gateway).bytes()));
}

INSTANTIATE_TEST_SUITE_P(
    Families, Ipv6Underlay,
    ::testing::Values(Underlay{"IPv6 in IPv6", kGateway6, kUnderlay6, pod_sends(kOutside6).udp(1, 2).payload(900)},
                      Underlay{"IPv4 in IPv6", kGateway6, kUnderlay6, pod_sends(kOutside).icmp(kEcho).payload(900)},
                      Underlay{"IPv6 in IPv4", kGateway, kUnderlay, pod_sends(kOutside6).udp(1, 2).payload(900)}),
    claim_as_name<Underlay>);

TEST_F(Ipv6Test, AGatewayWithAnIpv6AddressIsProbedAndFoundOut) {
  const std::uint32_t id = node_.configure_class(by_gateway(kGateway6));
  node_.put("gateways", ec(kGateway6), ec_gateway{});
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).udp(1, 2)).action, Action::kRedirect);
  const auto probe = node_.next_tunneled();
  ASSERT_TRUE(probe) << "no probe is on the wire";
  EXPECT_EQ(probe->vni, EC_VNI_PROBE);
  EXPECT_EQ(probe->dst, kGateway6);
  node_.lose_gateway(kGateway6);
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).udp(1, 2)).action, Action::kDrop);
  EXPECT_EQ(node_.counted(EC_DROP_GATEWAY_UNREACHABLE), 1U);
  node_.send_tunneled(kGateway6, EC_VNI_ANSWER, Packet().ip(kOutside, kPod).udp(1, 2).bytes(), kUnderlay6);
  const std::uint64_t deadline = monotonic_ns() + 1'000'000'000;
  while (node_.find<ec_gateway>("gateways", ec(kGateway6))->unanswered != 0 && monotonic_ns() < deadline) continue;
  EXPECT_EQ(node_.classify(pod_sends(kOutside6).udp(1, 2)).action, Action::kRedirect);
  EXPECT_NE(id, 0U);
}

TEST_F(Ipv6Test, AnAnswerOfTheGatewayIsPutIntoThePod) {
  const std::uint32_t vni = node_.find<ec_class>("classes", id_)->vni;
  const Packet answer = Packet().from(kForeignMac).to(kForeignMac).ip(kOutside6, kPod6).tcp(443, 40000).payload(900);
  node_.send_tunneled(kGateway, vni, answer.bytes());
  const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came to the pod";
  EXPECT_EQ(hex_dump(frame->bytes), hex_dump(Packet(answer).from(kPodHostMac).to(kPodMac).bytes()));
  node_.expect_counts({{id_, EC_RETURNED, 1, answer.bytes().size()}});
}

// --- as gateway --------------------------------------------------------------------------------------------------

class Ipv6GatewayTest : public DatapathTest {
 protected:
  Ipv6GatewayTest() : id_(node_.configure_class(by_gateway(kUnderlay6))) {}
  std::uint32_t vni() const { return node_.find<ec_class>("classes", id_)->vni; }
  static Packet outward(const char* dst) {
    return Packet().from(kForeignMac).to(kForeignMac).ip(kRemotePod6, dst).udp(1, 2);
  }
  std::uint32_t id_;
};

TEST_F(Ipv6GatewayTest, AWorkerIsLearnedAndRepliesGoBackToItFromTheAddressThatItSentTo) {
  const Packet request = outward(kOutside6);
  node_.send_tunneled(kWorker6, vni(), request.bytes(), kUnderlay6);
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  expect_translated(*left, request, kEgressIp6);
  node_.expect_counts({{id_, EC_GATEWAY_OUT, 1, request.bytes().size()}});
  const auto worker = node_.find<ec_worker>("workers", ec(kRemotePod6));
  ASSERT_TRUE(worker);
  EXPECT_EQ(from_ec(worker->node).str(), kWorker6);
  EXPECT_EQ(from_ec(worker->gateway).str(), kUnderlay6);

  const Packet reply = outside_sends(kOutside6, kEgressIp6).udp(2, source_port(*left)).payload(900);
  node_.far("outside").send(reply.bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->vni, vni());
  EXPECT_EQ(tunneled->src, kUnderlay6);
  EXPECT_EQ(tunneled->dst, kWorker6);
  const Packet inner = Packet().ip(kOutside6, kRemotePod6).ttl(63).udp(2, 1).payload(900);
  EXPECT_EQ(hex_dump(tunneled->inner), hex_dump(in_tunnel(inner, kUnderlay6, kWorker6).bytes()));
  node_.expect_counts(
      {{id_, EC_GATEWAY_OUT, 1, request.bytes().size()}, {id_, EC_GATEWAY_BACK, 1, inner.bytes().size()}});
}

TEST_F(Ipv6GatewayTest, AProbeIsReturned) {
  node_.send_tunneled(kWorker6, EC_VNI_PROBE, outward(kOutside6).bytes(), kUnderlay6);
  const auto returned = node_.next_tunneled();
  ASSERT_TRUE(returned) << "no answer is on the wire";
  EXPECT_EQ(returned->vni, EC_VNI_ANSWER);
  EXPECT_EQ(returned->src, kUnderlay6);
  EXPECT_EQ(returned->dst, kWorker6);
}

TEST_F(Ipv6GatewayTest, StrangersTheClusterAndLinkLocalAddressesAreRefused) {
  const std::size_t size = outward(kOutside6).bytes().size();
  node_.send_tunneled("2001:db8:2:1::50", vni(), outward(kOutside6).bytes(), kUnderlay6);
  node_.expect_counts({{0, EC_DROP_UNKNOWN_SENDER, 1, size}});
  node_.send_tunneled(kWorker6, vni(), outward(kServiceIp6).bytes(), kUnderlay6);
  node_.send_tunneled(kWorker6, vni(), outward("fe80::1").bytes(), kUnderlay6);
  node_.send_tunneled(kWorker6, vni(), outward("ff0e::1").bytes(), kUnderlay6);
  node_.expect_counts({{0, EC_DROP_UNKNOWN_SENDER, 1, size}, {id_, EC_DROP_BAD_DESTINATION, 3, 3 * size}});
}

TEST_F(Ipv6GatewayTest, APodsOwnPacketLeavesWithTheEgressIpOfItsFamilyAndTheAnswerComesToThePod) {
  const Packet request = pod_sends(kOutside6).udp(40000, 443).payload(900);
  node_.far("pod0").send(request.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  expect_translated(*left, request, kEgressIp6);

  const Packet answer = outside_sends(kOutside6, kEgressIp6).udp(443, source_port(*left)).payload(900);
  node_.far("outside").send(answer.bytes());
  const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came to the pod";
  const Packet in_pod = Packet(answer).from(kPodHostMac).to(kPodMac).ip(kOutside6, kPod6).ttl(63);
  EXPECT_EQ(hex_dump(frame->bytes), hex_dump(Packet(in_pod).udp(443, 40000).bytes()));
  EXPECT_TRUE(frame->for_host) << "the pod's stack will not take it";
  node_.expect_counts(
      {{id_, EC_STEERED_LOCAL, 1, request.bytes().size()}, {id_, EC_RETURNED, 1, answer.bytes().size()}});
}

TEST_F(Ipv6GatewayTest, AnEchoLeavesWithTheEgressIpToo) {
  const Packet echo = pod_sends(kOutside6).icmp(kEcho6).payload(56);
  node_.far("pod0").send(echo.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  expect_translated(*left, echo, kEgressIp6);
}

}  // namespace
}  // namespace egressclass
