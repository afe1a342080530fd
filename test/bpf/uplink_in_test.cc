// SPDX-License-Identifier: Apache-2.0
// uplink_in: what comes for an egress IP goes into the gateway's namespace, neighbours that ask for one are answered,
// and all the rest is the host's.
#include <netinet/in.h>

#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint8_t kEcho = 8;
constexpr std::uint8_t kEchoReply = 0;
constexpr std::uint8_t kUnreachable = 3;
constexpr std::uint8_t kEcho6 = 128;
constexpr std::uint8_t kSolicitation = 135;
constexpr std::uint8_t kAdvertisement = 136;

constexpr const char* kEgressIp6 = "2001:db8:113::31";
constexpr const char* kGroup6 = "ff02::1:ff00:31";  // of those who ask for kEgressIp6
constexpr const char* kAsking = "192.0.2.50";
constexpr const char* kAsking6 = "fe80::50";
constexpr Mac kAskingMac = {0x0a, 0, 0, 0, 7, 7};
constexpr Mac kBroadcast = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr Mac kGroupMac = {0x33, 0x33, 0xff, 0, 0, 0x31};
constexpr Mac kAllNodesMac = {0x33, 0x33, 0, 0, 0, 1};

/// The egress IPs, one of each family, are answered for on `uplink`.
constexpr const char* kBothFamilies = R"("destinations": ["0.0.0.0/0", "::/0"],
    "gateways": [{"address": "192.0.2.31", "egressIPs": ["203.0.113.31", "2001:db8:113::31"]}])";

Packet arp_request(const char* target) { return Packet().from(kAskingMac).to(kBroadcast).arp(kAsking, target); }

/// The address that is asked for, and a MAC address as an option of that type.
Bytes target_of(const char* address, std::uint8_t option = 0, const Mac& mac = {}) {
  const ec_ip ip = ec(address);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&ip);
  Bytes out(bytes, bytes + sizeof(ip));
  if (option == 0) return out;
  out.insert(out.end(), {option, 1});
  out.insert(out.end(), mac.begin(), mac.end());
  return out;
}

Packet solicitation(const char* target = kEgressIp6, const char* to = kGroup6) {
  return Packet()
      .from(kAskingMac)
      .to(kGroupMac)
      .ip(kAsking6, to)
      .ttl(255)
      .icmp(kSolicitation)
      .icmp_word(0)
      .payload(target_of(target, 1, kAskingMac));
}

/// Of who wants to have the address: from none, and without an option.
Packet probe(const char* target = kEgressIp6) { return solicitation().ip("::", kGroup6).payload(target_of(target)); }

Packet advertisement(const char* to, const Mac& mac, std::uint32_t flags) {
  return Packet()
      .from(kUplinkMac)
      .to(mac)
      .ip(kEgressIp6, to)
      .ttl(255)
      .icmp(kAdvertisement)
      .icmp_word(flags)
      .payload(target_of(kEgressIp6, 2, kUplinkMac));
}

class UplinkInTest : public DatapathTest {
 protected:
  UplinkInTest() : id_(node_.configure_class(kBothFamilies)) {}

  Outcome uplink_in(const Packet& packet, const std::string& device = "uplink", std::uint32_t mark = 0) {
    return node_.run(Program::kUplinkIn, packet.bytes(), node_.ifindex(device), mark);
  }

  /// On the wire, to a question that came from there.
  void expect_answer(const Packet& question, const Packet& answer) {
    node_.far("uplink").send(question.bytes());
    const auto frame = node_.far("uplink").receive(std::chrono::seconds(1));
    ASSERT_TRUE(frame) << "nobody answers";
    EXPECT_EQ(hex_dump(frame->bytes), hex_dump(answer.bytes()));
    EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it is answered twice";
    node_.expect_counts({});
  }

  std::uint32_t id_;
};

// --- what is not ours --------------------------------------------------------------------------------------------

struct Passing {
  const char* claim;
  Packet packet;
  const char* device = "uplink";
};

std::ostream& operator<<(std::ostream& out, const Passing& c) { return out << c.claim << ", given" << c.packet; }

class Passes : public UplinkInTest, public ::testing::WithParamInterface<Passing> {};

TEST_P(Passes, AsItIs) {
  const Passing& c = GetParam();
  for (const bool applied : {true, false}) {
    node_.set_applied(applied);
    const Outcome outcome = uplink_in(c.packet, c.device, 0xa5a5a5a5);
    EXPECT_EQ(outcome.action, Action::kNext);
    EXPECT_EQ(outcome.mark, 0xa5a5a5a5);
    EXPECT_EQ(hex_dump(outcome.data), hex_dump(c.packet.bytes()));
  }
  node_.expect_counts({});
}

INSTANTIATE_TEST_SUITE_P(
    Packets, Passes,
    ::testing::Values(Passing{"what is for the node", outside_sends(kOutside, kUnderlay).udp(1, 2)},
                      Passing{"what is for the node in IPv6", outside_sends(kOutside6, kUnderlay6).tcp(1, 2, kSyn)},
                      Passing{"what is for a pod", outside_sends(kOutside, kPod).udp(1, 2)},
                      Passing{"what is for an egress IP of another node",
                              outside_sends(kOutside, kEgressIpElsewhere).udp(1, 2)},
                      Passing{"what comes from an egress IP", outside_sends(kEgressIp, kUnderlay).udp(1, 2)},
                      Passing{"IPv6 to an egress IP of IPv4", outside_sends(kOutside6, "::ffff:0:cb00:711f").udp(1, 2)},
                      Passing{"a VLAN tag before the egress IP", outside_sends(kOutside, kEgressIp).udp(1, 2).vlan(7)},
                      Passing{"ARP for the node", arp_request(kUnderlay)}, Passing{"ARP for a pod", arp_request(kPod)},
                      Passing{"ARP for an egress IP of another node", arp_request(kEgressIpElsewhere)},
                      Passing{"ARP for an egress IP of another interface", arp_request(kEgressIp), "outside"},
                      Passing{"ARP for an egress IP under a VLAN tag", arp_request(kEgressIp).vlan(7)},
                      Passing{"an ARP reply", Packet().from(kAskingMac).to(kUplinkMac).arp_reply(kAsking, kEgressIp)},
                      Passing{"a solicitation for the node", solicitation(kUnderlay6, "ff02::1:ff00:31")},
                      Passing{"a solicitation for another address", solicitation("2001:db8:113::99")},
                      Passing{"a solicitation on another interface", solicitation(), "outside"},
                      Passing{"a solicitation that was forwarded", solicitation().ttl(254)},
                      Passing{"a solicitation with another code", solicitation().icmp(kSolicitation, 1)},
                      Passing{"a solicitation that is cut", solicitation().cut(14 + 40 + 8 + 15)},
                      Passing{"an advertisement to a group", solicitation().icmp(kAdvertisement)},
                      Passing{"a probe for another address", probe("2001:db8:113::99")},
                      Passing{"other multicast", outside_sends("fe80::50", "ff02::fb").udp(5353, 5353)},
                      Passing{"another protocol", outside_sends(kOutside, kEgressIp).udp(1, 2).ether_type(0x88cc)}),
    claim_as_name<Passing>);

TEST_F(UplinkInTest, AVlanTagThatTheKernelHasTakenOffIsSeen) {
  node_.far("uplink").send(outside_sends(kOutside, kEgressIp).to(kUplinkMac).vlan(7).udp(1, 2).bytes());
  node_.far("uplink").send(arp_request(kEgressIp).vlan(7).bytes());
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it is answered";
  EXPECT_TRUE(node_.inside().receive_all().empty()) << "it came into the gateway's namespace";
}

// --- what is ours ------------------------------------------------------------------------------------------------

TEST_F(UplinkInTest, WhatIsForAnEgressIpIsLedInWithoutAMarkWhateverTheInterface) {
  for (const char* device : {"uplink", "outside"}) {
    for (const Packet& packet :
         {outside_sends(kOutside, kEgressIp).udp(1, 2).payload(900), outside_sends(kOutside, kEgressIp).tcp(1, 2),
          outside_sends(kOutside, kEgressIp).icmp(kUnreachable, 1).about(Packet().ip(kEgressIp, kOutside).udp(1, 2)),
          outside_sends(kOutside, kEgressIp).fragment(1, 1480, false).payload(100),
          outside_sends(kOutside6, kEgressIp6).udp(1, 2).payload(900),
          outside_sends(kOutside6, kEgressIp6).icmp(kEcho6).payload(8)}) {
      const Outcome outcome = uplink_in(packet, device, 0xffffffff);
      EXPECT_EQ(outcome.action, Action::kRedirect) << packet;
      EXPECT_EQ(outcome.mark, 0U);
      EXPECT_EQ(hex_dump(outcome.data), hex_dump(packet.bytes()));
    }
  }
  node_.expect_counts({});
}

TEST_F(UplinkInTest, ItArrivesThereAndNobodyButConntrackKnowsWhatItIsFor) {
  const Packet packet = outside_sends(kOutside, kEgressIp).udp(1, 2).payload(900);
  node_.far("outside").send(packet.bytes());
  const auto frame = node_.inside().receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came into the gateway's namespace";
  EXPECT_EQ(hex_dump(frame->bytes), hex_dump(packet.bytes()));
  EXPECT_TRUE(frame->for_host) << "the stack will not take it";
  for (const char* device : {"pod0", "pod1", "uplink", "outside"})
    EXPECT_TRUE(node_.far(device).receive_all().empty()) << "something came out of " << device;
}

TEST_F(UplinkInTest, WithTheDatapathDownItIsDropped) {
  node_.set_applied(false);
  const Packet packet = outside_sends(kOutside, kEgressIp).udp(1, 2);
  EXPECT_EQ(uplink_in(packet).action, Action::kDrop);
  node_.expect_counts({{0, EC_DROP_DATAPATH_DOWN, 1, packet.bytes().size()}});
}

TEST_F(UplinkInTest, WithoutTheWayIntoTheNamespaceItIsDropped) {
  node_.cut_off_gateway();
  const Packet packet = outside_sends(kOutside, kEgressIp).udp(1, 2);
  EXPECT_EQ(uplink_in(packet).action, Action::kDrop);
  node_.expect_counts({{0, EC_DROP_GATEWAY_GONE, 1, packet.bytes().size()}});
}

TEST_F(UplinkInTest, AnAnswerComesToThePod) {
  // With so much of data that the answer acknowledges all of it, or conntrack would not take it for one.
  const Packet request = pod_sends(kOutside).tcp(40000, 443, kSyn).payload(999);
  node_.far("pod0").send(request.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  const Packet answer = outside_sends(kOutside, kEgressIp).tcp(443, source_port(*left), kSyn | kAck).payload(1300);
  node_.far("outside").send(answer.bytes());
  const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came to the pod";
  const Packet in_pod = Packet().from(kPodHostMac).to(kPodMac).ip(kOutside, kPod).ttl(63);
  EXPECT_EQ(hex_dump(frame->bytes), hex_dump(Packet(in_pod).tcp(443, 40000, kSyn | kAck).payload(1300).bytes()));
  EXPECT_TRUE(frame->for_host) << "the pod's stack will not take it";
  node_.expect_counts(
      {{id_, EC_STEERED_LOCAL, 1, request.bytes().size()}, {id_, EC_RETURNED, 1, answer.bytes().size()}});
}

TEST_F(UplinkInTest, AnErrorAboutAPodsPacketComesToThePod) {
  node_.far("pod0").send(pod_sends(kOutside).udp(40000, 443).bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  const Packet about = Packet().ip(kEgressIp, kOutside).ttl(63).udp(source_port(*left), 443);
  node_.far("outside").send(outside_sends("198.51.100.1", kEgressIp).icmp(kUnreachable, 1).about(about).bytes());
  const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
  ASSERT_TRUE(frame) << "nothing came to the pod";
  const Packet sent = Packet().ip(kPod, kOutside).ttl(63).udp(40000, 443);
  const Packet error = Packet().from(kPodHostMac).to(kPodMac).ip("198.51.100.1", kPod).ttl(63);
  EXPECT_EQ(hex_dump(frame->bytes),
            hex_dump(Packet(error).icmp(kUnreachable, 1).icmp_word(0x00420001).about(sent).bytes()));
}

TEST_F(UplinkInTest, AnEgressIpAnswersPing) {
  node_.far("outside").send(outside_sends(kOutside, kEgressIp).icmp(kEcho).payload(56).bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nobody answers";
  const Packet reply = Packet().from(kOutsideMac).to(kNextHopMac).ip(kEgressIp, kOutside).icmp(kEchoReply).payload(56);
  const Bytes expected = reply.bytes();
  EXPECT_EQ(hex_dump(Bytes(left->begin() + 14 + 20, left->end())),
            hex_dump(Bytes(expected.begin() + 14 + 20, expected.end())));
  EXPECT_EQ(hex_dump(Bytes(left->begin(), left->begin() + 14)),
            hex_dump(Bytes(expected.begin(), expected.begin() + 14)));
}

// --- who has it? -------------------------------------------------------------------------------------------------

TEST_F(UplinkInTest, AnArpRequestIsAnsweredWithTheInterfacesMacAddress) {
  expect_answer(arp_request(kEgressIp), Packet().from(kUplinkMac).to(kAskingMac).arp_reply(kEgressIp, kAsking));
}

TEST_F(UplinkInTest, AnArpRequestToItsMacAddressIsAnsweredToo) {
  expect_answer(arp_request(kEgressIp).to(kUplinkMac),
                Packet().from(kUplinkMac).to(kAskingMac).arp_reply(kEgressIp, kAsking));
}

TEST_F(UplinkInTest, AnArpProbeIsAnswered) {
  expect_answer(Packet().from(kAskingMac).to(kBroadcast).arp("0.0.0.0", kEgressIp),
                Packet().from(kUplinkMac).to(kAskingMac).arp_reply(kEgressIp, "0.0.0.0"));
}

TEST_F(UplinkInTest, OnAnotherInterfaceNobodyAnswers) {
  node_.far("outside").send(arp_request(kEgressIp).bytes());
  node_.far("outside").send(solicitation().bytes());
  node_.far("outside").send(probe().bytes());
  EXPECT_TRUE(node_.far("outside").receive_all().empty()) << "somebody answers";
}

TEST_F(UplinkInTest, ForAnEgressIpOfAnotherNodeNobodyAnswers) {
  node_.far("uplink").send(arp_request(kEgressIpElsewhere).bytes());
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "somebody answers";
}

TEST_F(UplinkInTest, AnEgressIpIsAnsweredForOnTheInterfaceThatTheConfigurationNames) {
  node_.configure_class(R"("destinations": ["0.0.0.0/0"], "gateways": [
      {"address": "192.0.2.31", "interface": "outside", "egressIPs": ["203.0.113.31"]}])");
  EXPECT_EQ(uplink_in(arp_request(kEgressIp), "outside").action, Action::kRedirect);
  EXPECT_EQ(uplink_in(arp_request(kEgressIp), "uplink").action, Action::kNext);
}

constexpr std::uint32_t kRouter = 0x80000000;
constexpr std::uint32_t kSolicited = 0x40000000;
constexpr std::uint32_t kOverride = 0x20000000;

TEST_F(UplinkInTest, ASolicitationIsAnsweredWithTheInterfacesMacAddress) {
  expect_answer(solicitation(), advertisement(kAsking6, kAskingMac, kRouter | kSolicited | kOverride));
}

TEST_F(UplinkInTest, ASolicitationToTheEgressIpItselfIsAnsweredToo) {
  const Packet unicast = solicitation(kEgressIp6, kEgressIp6).to(kUplinkMac);
  const Packet answer = advertisement(kAsking6, kAskingMac, kRouter | kSolicited | kOverride);
  expect_answer(unicast, answer);
  expect_answer(Packet(unicast).payload(target_of(kEgressIp6)), answer);  // it knows the MAC address, and checks it
}

TEST_F(UplinkInTest, ALongerSolicitationHasAnAnswerOfTheRightLength) {
  Bytes options = target_of(kEgressIp6, 1, kAskingMac);
  options.insert(options.end(), {14, 1, 1, 2, 3, 4, 5, 6});  // a nonce
  expect_answer(solicitation().payload(options), advertisement(kAsking6, kAskingMac, kRouter | kSolicited | kOverride));
}

TEST_F(UplinkInTest, WhoWantsToHaveTheAddressIsToldWithAllOthersThatItIsTaken) {
  expect_answer(probe(), advertisement("ff02::1", kAllNodesMac, kRouter | kOverride));
}

TEST_F(UplinkInTest, NeighboursAreAnsweredWithTheDatapathDownAsLongAsTheNodeHoldsTheAddress) {
  node_.set_applied(false);
  EXPECT_EQ(uplink_in(arp_request(kEgressIp)).action, Action::kRedirect);
  EXPECT_EQ(uplink_in(solicitation()).action, Action::kRedirect);
  for (const char* address : {kEgressIp, kEgressIp6}) node_.erase("egress_ips", ec(address));
  EXPECT_EQ(uplink_in(arp_request(kEgressIp)).action, Action::kNext);
  EXPECT_EQ(uplink_in(solicitation()).action, Action::kNext);
}

}  // namespace
}  // namespace egressclass
