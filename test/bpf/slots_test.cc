// SPDX-License-Identifier: Apache-2.0
// gateway_in on a gateway that has several egress IPs for a class: which one a packet gets.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <map>
#include <set>

#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr unsigned kPods = 1000;
constexpr unsigned kFirstPort = 1024;
constexpr unsigned kLastPort = 65535;
constexpr std::uint8_t kEcho = 8;

using Choices = std::map<std::string, std::string>;  // of egress IPs, by pod
using Shares = std::map<std::string, unsigned>;      // pods, by egress IP

/// This node is the gateway.
std::string members(const std::string& egress_ips) {
  return R"("destinations": ["0.0.0.0/0", "::/0"],
            "gateways": [{"address": "192.0.2.31", "egressIPs": [)" +
         egress_ips + "]}]";
}

constexpr const char* kTwo = R"("203.0.113.31", "203.0.113.32")";
constexpr const char* kFour = R"("203.0.113.31", "203.0.113.32", "203.0.113.33", "203.0.113.34")";
constexpr const char* kThreeOfFour = R"("203.0.113.31", "203.0.113.32", "203.0.113.34")";
constexpr const char* kGone = "203.0.113.33";

std::string pod_address(unsigned i) {
  return "10.244." + std::to_string(16 + i / 250) + "." + std::to_string(1 + i % 250);
}

/// As conntrack has it: of a pod, or of an egress IP, towards the port 443 of kOutside.
std::string flow_of(const std::string& src, unsigned sport, const std::string& protocol = "udp") {
  return "-p " + protocol + " -s " + src + " --sport " + std::to_string(sport) + " -d " + kOutside + " --dport 443";
}

std::string marked(std::uint32_t mark) { return " -u SEEN_REPLY --mark " + std::to_string(mark); }

class SlotsTest : public DatapathTest {
 protected:
  /// What becomes of a pod's packet in the gateway's namespace.
  Outcome choose_for(const Packet& packet) {
    const Outcome led_in = node_.classify(packet);
    EXPECT_EQ(led_in.action, Action::kRedirect);
    EXPECT_EQ(led_in.mark, new_mark_of(id_));
    return node_.gateway_in(led_in);
  }

  /// To which egress IP nft translates the packet. One id may stand for one of each family.
  std::string egress_ip_for(const Packet& packet) {
    const Outcome outcome = choose_for(packet);
    EXPECT_EQ(outcome.action, Action::kNext);
    const ec_class c = node_.find<ec_class>("classes", id_).value();
    const ec_slots& slots = outcome.data[12] == 0x08 ? c.slots4 : c.slots6;
    for (__u32 i = 0; i < slots.count; ++i)
      if (outcome.mark == slots.slot[i].id) return from_ec(slots.slot[i].ip).str();
    return "";
  }

  /// From which address the packet of a pod of another node leaves.
  std::string source_of_remote(const Packet& packet) {
    node_.send_tunneled(kWorker, node_.find<ec_class>("classes", id_)->vni, packet.bytes());
    const auto left = node_.next_outside();
    if (!left) return "";
    Ip ip = Ip::parse("0.0.0.0").value();
    std::copy_n(left->begin() + 14 + 12, 4, ip.bytes.begin() + 12);
    return ip.str();
  }

  void track(const std::string& flow) { node_.track(flow, Where::kInside); }
  std::string tracked(const std::string& flow) const { return node_.tracked(flow, Where::kInside); }

  void configure(const std::string& egress_ips) { id_ = node_.configure_class(members(egress_ips)); }

  Choices choose() {
    Choices choices;
    for (unsigned i = 0; i < kPods; ++i) {
      const std::string pod = pod_address(i);
      node_.put("endpoints", ec(pod.c_str()), node_.find<ec_endpoint>("endpoints", ec(kPod)).value());
      choices[pod] = egress_ip_for(pod_sends(kOutside).ip(pod.c_str(), kOutside).udp(1, 443));
    }
    return choices;
  }

  static Shares shares(const Choices& choices) {
    Shares shares;
    for (const auto& [pod, egress_ip] : choices) ++shares[egress_ip];
    return shares;
  }

  static void expect_even(const Shares& shares, std::size_t slots) {
    EXPECT_EQ(shares.size(), slots);
    for (const auto& [egress_ip, share] : shares)
      EXPECT_NEAR(share, kPods / static_cast<double>(slots), kPods / 20.0) << "of " << egress_ip;
  }

  /// The ports of an egress IP are taken, from the first to that one, by flows that flow_of() names.
  void take_ports(const std::string& egress_ip, unsigned last = kLastPort, const char* protocol = "udp") {
    std::vector<std::string> flows;
    const std::string state = std::string(protocol) == "tcp" ? " --state ESTABLISHED" : "";
    for (unsigned port = kFirstPort; port <= last; ++port)
      flows.push_back(flow_of(egress_ip, port, protocol) + marked(0) + state);
    node_.track(flows, Where::kInside);
  }

  std::uint32_t id_ = 0;
};

Packet to_outside(std::uint16_t sport) { return pod_sends(kOutside).udp(sport, 443); }

// --- the choice --------------------------------------------------------------------------------------------------

Packet remote_sends(std::uint16_t sport, const std::string& pod = kRemotePod) {
  return Packet().from(kForeignMac).to(kForeignMac).ip(pod.c_str(), kOutside).udp(sport, 443);
}

TEST_F(SlotsTest, EachEgressIpHasAnIdOfItsOwn) {
  configure(R"("203.0.113.31", "203.0.113.32", "2001:db8:113::31", "2001:db8:113::32")");
  const ec_class c = node_.find<ec_class>("classes", id_).value();
  ASSERT_EQ(c.slots4.count, 2U);
  ASSERT_EQ(c.slots6.count, 2U);
  EXPECT_NE(c.slots4.slot[0].id, c.slots4.slot[1].id);
  EXPECT_NE(c.slots6.slot[0].id, c.slots6.slot[1].id);
  for (std::size_t i = 0; i < 2; ++i) {
    for (const std::uint32_t id : {c.slots4.slot[i].id, c.slots6.slot[i].id}) {
      EXPECT_NE(id, 0U);
      EXPECT_EQ(id & ~EC_MARK_ID, 0U);
    }
  }
}

TEST_F(SlotsTest, APodKeepsToOneEgressIpWhateverItSends) {
  configure(kFour);
  const std::string due = egress_ip_for(to_outside(1));
  EXPECT_NE(due, "");
  for (std::uint16_t port = 1; port <= 200; ++port) EXPECT_EQ(egress_ip_for(to_outside(port)), due);
  EXPECT_EQ(egress_ip_for(pod_sends("203.0.114.9").tcp(1, 2, kSyn)), due);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(1, 2)), due);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).icmp(kEcho)), due);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).protocol(253).payload(8)), due);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(8)), due);
}

TEST_F(SlotsTest, PodsSpreadEvenly) {
  configure(kFour);
  expect_even(shares(choose()), 4);
}

TEST_F(SlotsTest, AnEgressIpThatGoesMovesItsOwnPodsAlone) {
  configure(kFour);
  const Choices before = choose();
  configure(kThreeOfFour);
  const Choices after = choose();
  unsigned moved = 0;
  for (const auto& [pod, egress_ip] : before) {
    if (after.at(pod) == egress_ip) continue;
    EXPECT_EQ(egress_ip, kGone);
    ++moved;
  }
  EXPECT_EQ(moved, shares(before)[kGone]);
  expect_even(shares(after), 3);
}

TEST_F(SlotsTest, TheMostEgressIpsThatAGatewayMayHave) {
  std::string all;
  for (int i = 31; i < 31 + EC_MAX_SLOTS; ++i)
    all += (i == 31 ? "\"" : ", \"") + ("203.0.113." + std::to_string(i)) + "\"";
  configure(all);
  expect_even(shares(choose()), EC_MAX_SLOTS);
}

TEST_F(SlotsTest, EachFamilyHasItsOwnEgressIps) {
  configure(R"("203.0.113.31", "2001:db8:113::31", "2001:db8:113::32", "2001:db8:113::33")");
  std::set<std::string> v6;
  for (unsigned i = 0; i < 100; ++i) {
    const std::string pod = "fd00:244:1::" + std::to_string(1000 + i);
    node_.put("endpoints", ec(pod.c_str()), node_.find<ec_endpoint>("endpoints", ec(kPod6)).value());
    v6.insert(egress_ip_for(pod_sends(kOutside6).ip(pod.c_str(), kOutside6).udp(1, 443)));
  }
  EXPECT_EQ(v6, (std::set<std::string>{"2001:db8:113::31", "2001:db8:113::32", "2001:db8:113::33"}));
  EXPECT_EQ(egress_ip_for(to_outside(1)), "203.0.113.31");
}

TEST_F(SlotsTest, APodOfAnotherNodeGetsTheEgressIpThatItWouldGetHere) {
  configure(kTwo);
  const Choices choices = choose();
  std::set<std::string> seen;
  for (unsigned i = 0; i < 12; ++i) {
    const std::string pod = pod_address(i);
    node_.erase("endpoints", ec(pod.c_str()));
    const std::string source = source_of_remote(remote_sends(1, pod));
    EXPECT_EQ(source, choices.at(pod)) << pod;
    seen.insert(source);
  }
  EXPECT_EQ(seen.size(), 2U);
  EXPECT_EQ(node_.counted(EC_GATEWAY_OUT), 12U);
}

TEST_F(SlotsTest, APodsPacketsLeaveWithTheEgressIpThatWasChosen) {
  configure(kFour);
  const std::string due = egress_ip_for(to_outside(1));
  for (std::uint16_t port = 1; port <= 5; ++port) {
    node_.far("pod0").send(to_outside(port).bytes());
    const auto left = node_.next_outside();
    ASSERT_TRUE(left) << "nothing has left";
    expect_translated(*left, to_outside(port), due.c_str());
  }
}

// --- when ports get few ------------------------------------------------------------------------------------------

class CrowdedTest : public SlotsTest {
 protected:
  CrowdedTest() {
    configure(kTwo);
    due_ = egress_ip_for(to_outside(1));
    other_ = due_ == "203.0.113.31" ? "203.0.113.32" : "203.0.113.31";
  }

  /// New flows of the pod, of which so many get the egress IP that is not due.
  unsigned diverted() {
    unsigned diverted = 0;
    for (std::uint16_t port = 1; port <= 100; ++port) diverted += egress_ip_for(to_outside(port)) == other_ ? 1 : 0;
    return diverted;
  }

  std::string due_;
  std::string other_;
};

TEST_F(CrowdedTest, NewFlowsTakeTheNextEgressIp) {
  take_ports(due_);
  EXPECT_EQ(diverted(), 100U);
}

TEST_F(CrowdedTest, NewFlowsOfAnotherProtocolDoNot) {
  take_ports(due_);
  for (std::uint16_t port = 1; port <= 100; ++port)
    EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(port, 443, kSyn)), due_);
}

TEST_F(CrowdedTest, NewFlowsToAnotherEndpointDoNot) {
  take_ports(due_);
  for (std::uint16_t port = 1; port <= 100; ++port) {
    EXPECT_EQ(egress_ip_for(pod_sends(kOutside).udp(port, 444)), due_);
    EXPECT_EQ(egress_ip_for(pod_sends("198.51.100.8").udp(port, 443)), due_);
  }
}

TEST_F(CrowdedTest, OfTcpOnlyWhatOpensAConnectionDoes) {
  take_ports(due_, kLastPort, "tcp");
  for (std::uint16_t port = 1; port <= 100; ++port) {
    EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(port, 443, kSyn)), other_);
    EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(port, 443)), due_);
  }
}

TEST_F(CrowdedTest, OfUdpOnlyWhatConntrackDoesNotKnowDoes) {
  take_ports(due_);
  track(flow_of(kPod, 7) + marked(id_));
  EXPECT_EQ(egress_ip_for(to_outside(7)), due_);
  EXPECT_EQ(egress_ip_for(to_outside(8)), other_);
}

TEST_F(CrowdedTest, WhatHasNoPortsDoesNot) {
  take_ports(due_);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).icmp(kEcho)), due_);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).protocol(IPPROTO_GRE).payload(8)), due_);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(8)), due_);
}

TEST_F(CrowdedTest, HalfOfThePortsAreEnough) {
  take_ports(due_, kFirstPort + (kLastPort - kFirstPort) / 2);
  EXPECT_LE(diverted(), 10U);  // 1 of 100 is to be expected
}

TEST_F(CrowdedTest, OneOfTwentyIsFew) {
  take_ports(due_, kFirstPort + (kLastPort - kFirstPort) / 20 * 19);
  EXPECT_GE(diverted(), 90U);  // 99 of 100 are to be expected
}

TEST_F(CrowdedTest, WhenAllAreCrowdedThePodKeepsToItsOwn) {
  for (const std::string& egress_ip : {due_, other_})
    take_ports(egress_ip, kFirstPort + (kLastPort - kFirstPort) / 20 * 19);
  EXPECT_EQ(diverted(), 0U);
}

/// All but the last twentieth of the ports are taken, of each egress IP.
class LastPortsTest : public CrowdedTest {
 protected:
  LastPortsTest() { take_all_but_the_last("udp"); }

  void take_all_but_the_last(const char* protocol) {
    for (const std::string& egress_ip : {due_, other_}) take_ports(egress_ip, kLastTaken, protocol);
  }

  /// The flow was given to the kernel with the port that it gets, which is a free one.
  void expect_opened(const std::string& flow) const {
    const std::string known = tracked(flow);
    const std::size_t reply = known.find("dst=203.0.113.3");
    ASSERT_NE(reply, std::string::npos) << known;
    EXPECT_GT(std::stoul(known.substr(known.find("dport=", reply) + 6)), kLastTaken) << known;
  }

  static constexpr unsigned kLastTaken = kFirstPort + (kLastPort - kFirstPort) / 20 * 19;
};

TEST_F(LastPortsTest, AFlowIsGivenToTheKernelWithAFreePort) {
  for (std::uint16_t port = 1; port <= 100; ++port) {
    EXPECT_EQ(egress_ip_for(to_outside(port)), due_);
    expect_opened(flow_of(kPod, port));
  }
}

TEST_F(LastPortsTest, SoIsThatOfAPodOfAnotherNode) {
  const Packet packet = remote_sends(7);
  node_.send_tunneled(kWorker, node_.find<ec_class>("classes", id_)->vni, packet.bytes());
  const auto left = node_.next_outside();
  ASSERT_TRUE(left) << "nothing has left";
  EXPECT_GT(source_port(*left), kLastTaken);
  node_.expect_counts(
      {{id_, EC_STEERED_LOCAL, 1, to_outside(1).bytes().size()}, {id_, EC_GATEWAY_OUT, 1, packet.bytes().size()}});
  expect_opened(flow_of(kRemotePod, 7));
}

TEST_F(LastPortsTest, OfTcpWhatOpensAConnectionIs) {
  take_all_but_the_last("tcp");
  const std::string flow = flow_of(kPod, 7, "tcp");
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(7, 443)), due_);
  EXPECT_EQ(tracked(flow), "");
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).tcp(7, 443, kSyn)), due_);
  expect_opened(flow);
}

TEST_F(LastPortsTest, WhatFindsManyPortsIsLeftToTheKernel) {
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).udp(7, 444)), due_);
  EXPECT_EQ(tracked("-p udp -s " + std::string(kPod) + " --sport 7 -d " + kOutside + " --dport 444"), "");
}

TEST_F(LastPortsTest, WhatConntrackKnowsIsLeftAlone) {
  track(flow_of(kPod, 7) + marked(node_.find<ec_class>("classes", id_)->slots4.slot[0].id));
  egress_ip_for(to_outside(7));
  EXPECT_EQ(tracked(flow_of(kPod, 7)).find(due_), std::string::npos);
}

TEST_F(CrowdedTest, WhenThereIsNoPortAtAllTheFlowIsDroppedAndCountedOfTheClass) {
  take_ports(due_);
  take_ports(other_);
  EXPECT_EQ(choose_for(to_outside(7)).action, Action::kDrop);
  EXPECT_EQ(node_.counted(EC_DROP_NAT_EXHAUSTED), 1U);
  EXPECT_EQ(tracked(flow_of(kPod, 7)), "");
}

TEST_F(CrowdedTest, ForAMomentNoPortIsLookedForTowardsAnEndpointThatHasNone) {
  take_ports(due_);
  take_ports(other_);
  choose_for(to_outside(7));
  node_.forget_flows();  // all ports are free again, but that takes longer than the moment
  const ec_exhausted_key endpoint = {.remote = ec(kOutside),
                                     .vni = node_.find<ec_class>("classes", id_)->vni,
                                     .port = htons(443),
                                     .proto = IPPROTO_UDP};
  ASSERT_TRUE(node_.find<__u64>("exhausted", endpoint));
  node_.put("exhausted", endpoint, monotonic_ns());
  EXPECT_EQ(choose_for(to_outside(7)).action, Action::kDrop);
  EXPECT_EQ(egress_ip_for(pod_sends(kOutside).udp(7, 444)), due_) << "it is another endpoint";
  std::this_thread::sleep_for(std::chrono::nanoseconds(EC_EXHAUSTED_NS));
  EXPECT_EQ(egress_ip_for(to_outside(7)), due_);
}

// --- flows of another class --------------------------------------------------------------------------------------

TEST_F(SlotsTest, AFlowThatWasTranslatedForTheClassGoesOn) {
  configure(kTwo);
  const ec_class c = node_.find<ec_class>("classes", id_).value();
  std::uint16_t port = 7;
  for (std::size_t i = 0; i < 2; ++i) {
    for (const std::uint32_t tunneled : {0U, EC_MARK_TUNNELED}) {
      track(flow_of(kPod, port) + marked(c.slots4.slot[i].id | tunneled));
      EXPECT_NE(egress_ip_for(to_outside(port)), "");
      EXPECT_NE(tracked(flow_of(kPod, port)), "") << "its egress IP is one of the class";
      ++port;
    }
  }
}

TEST_F(SlotsTest, AFlowThatWasTranslatedForAnotherClassOrForNoneIsEnded) {
  configure(kTwo);
  const std::uint32_t another = id_ + 20;
  for (const std::uint32_t mark : {another, 0U, another | EC_MARK_TUNNELED, EC_MARK_TUNNELED}) {
    track(flow_of(kPod, 7) + marked(mark));
    track(flow_of(kPod, 8) + marked(mark));
    EXPECT_NE(egress_ip_for(to_outside(7)), "");
    EXPECT_EQ(tracked(flow_of(kPod, 7)), "") << "with the mark " << mark;
    EXPECT_NE(tracked(flow_of(kPod, 8)), "") << "it is another flow";
    egress_ip_for(to_outside(8));
  }
}

TEST_F(SlotsTest, AFlowOfAPodOfAnotherNodeIsEndedLikewiseAndItsPacketIsTranslatedAnew) {
  configure(R"("203.0.113.31")");
  track(flow_of(kRemotePod, 7) + marked(id_ + 20));
  EXPECT_EQ(source_of_remote(remote_sends(7)), "203.0.113.31");
  node_.expect_counts({{id_, EC_GATEWAY_OUT, 1, remote_sends(7).bytes().size()}});
}

TEST_F(SlotsTest, AFlowOfTheHostsConntrackIsNoneOfTheGateways) {
  configure(kTwo);
  node_.track(flow_of(kPod, 7) + marked(id_ + 20));
  EXPECT_NE(egress_ip_for(to_outside(7)), "");
  EXPECT_NE(node_.tracked(flow_of(kPod, 7)), "");
}

}  // namespace
}  // namespace egressclass
