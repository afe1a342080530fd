// SPDX-License-Identifier: Apache-2.0
// classify: what a class's destinations, ports, exceptions and families make of a packet. Classes are given as in the
// configuration.
#include <netinet/in.h>

#include <type_traits>

#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint8_t kEcho = 8;
constexpr std::uint8_t kEcho6 = 128;
constexpr std::uint8_t kUnreachable = 3;

// One gateway, in the tunnel, that has egress IPs of these families.
std::string members(const char* egress_ips, const std::string& rest) {
  return R"("gateways": [{"address": "192.0.2.21"}], "egressIPs": [)" + std::string(egress_ips) + "], " + rest;
}
std::string both_families(const std::string& rest) { return members(R"("203.0.113.21", "2001:db8:113::21")", rest); }
std::string only_ipv4(const std::string& rest) { return members(R"("203.0.113.21")", rest); }
std::string only_ipv6(const std::string& rest) { return members(R"("2001:db8:113::21")", rest); }

std::string to_ports(const std::string& ports) {
  return both_families(R"("destinations": ["0.0.0.0/0", "::/0"], "ports": [)" + ports + "]");
}

std::string own_ports() {
  return both_families(R"("ports": ["tcp/443"], "except": ["198.51.100.64/26"],
                          "destinations": ["198.51.0.0/16", {"cidr": "198.51.100.0/24", "ports": ["udp/53"]},
                                           {"cidr": "198.51.100.96/27", "ports": ["any"]}])");
}

std::string or_drop() {
  return both_families(R"("otherwise": "drop", "ports": ["tcp/443"],
                          "destinations": ["198.51.100.0/24", "2001:db8:51::/48"],
                          "except": ["198.51.100.128/25", "192.168.0.0/16"])");
}

struct Case {
  const char* claim;
  std::string members;  // of the class
  Packet packet;
  ec_event counted;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.claim << ", given " << c.members << c.packet;
}

class RulesTest : public DatapathTest {};
class Rules : public RulesTest, public ::testing::WithParamInterface<Case> {};

TEST_P(Rules, Claim) {
  const Case& c = GetParam();
  const std::uint32_t id = node_.configure_class(c.members);
  const Outcome outcome = node_.classify(c.packet);
  const Action expected = c.counted == EC_STEERED_TUNNEL ? Action::kRedirect
                          : c.counted == EC_BYPASSED     ? Action::kNext
                                                         : Action::kDrop;
  EXPECT_EQ(outcome.action, expected);
  EXPECT_EQ(node_.gateway_of(outcome), c.counted == EC_STEERED_TUNNEL ? kGateway : "");
  node_.expect_counts({{id, c.counted, 1, c.packet.bytes().size()}});
}

Packet tcp(std::uint16_t port, const char* dst = kOutside) { return pod_sends(dst).tcp(40000, port, kSyn); }
Packet udp(std::uint16_t port, const char* dst = kOutside) { return pod_sends(dst).udp(40000, port); }
Packet sctp(std::uint16_t port) {
  return pod_sends(kOutside)
      .protocol(IPPROTO_SCTP)
      .payload(Bytes{0x9c, 0x40, static_cast<std::uint8_t>(port >> 8U), static_cast<std::uint8_t>(port), 0, 0, 0, 0, 0,
                     0, 0, 0, 1, 0, 0, 4});
}
Packet of_protocol(std::uint8_t protocol, const char* dst = kOutside) {
  return pod_sends(dst).protocol(protocol).payload(32);
}

INSTANTIATE_TEST_SUITE_P(
    Ports, Rules,
    ::testing::Values(
        Case{"a port is steered", to_ports(R"("tcp/443")"), tcp(443), EC_STEERED_TUNNEL},
        Case{"a port is steered over IPv6", to_ports(R"("tcp/443")"), tcp(443, kOutside6), EC_STEERED_TUNNEL},
        Case{"the port before it is not", to_ports(R"("tcp/443")"), tcp(442), EC_BYPASSED},
        Case{"the port behind it is not", to_ports(R"("tcp/443")"), tcp(444), EC_BYPASSED},
        Case{"the port behind it is not over IPv6", to_ports(R"("tcp/443")"), tcp(444, kOutside6), EC_BYPASSED},
        Case{"the same port of another protocol is not", to_ports(R"("tcp/443")"), udp(443), EC_BYPASSED},
        Case{"the source port does not count", to_ports(R"("tcp/40000")"), tcp(443), EC_BYPASSED},
        Case{"a port whose bytes are swapped is another", to_ports(R"("tcp/443")"), tcp(0xbb01), EC_BYPASSED},
        Case{"ping is no port", to_ports(R"("tcp/443")"), pod_sends(kOutside).icmp(kEcho), EC_BYPASSED},
        Case{"the first port of a range", to_ports(R"("udp/5000-5100")"), udp(5000), EC_STEERED_TUNNEL},
        Case{"a port within a range", to_ports(R"("udp/5000-5100")"), udp(5063), EC_STEERED_TUNNEL},
        Case{"the last port of a range", to_ports(R"("udp/5000-5100")"), udp(5100), EC_STEERED_TUNNEL},
        Case{"the port before a range", to_ports(R"("udp/5000-5100")"), udp(4999), EC_BYPASSED},
        Case{"the port behind a range", to_ports(R"("udp/5000-5100")"), udp(5101), EC_BYPASSED},
        Case{"the lowest port", to_ports(R"("udp/1-2")"), udp(1), EC_STEERED_TUNNEL},
        Case{"port 0 is in no range", to_ports(R"("udp/1-65535")"), udp(0), EC_BYPASSED},
        Case{"the highest port", to_ports(R"("udp/65000-65535")"), udp(65535), EC_STEERED_TUNNEL},
        Case{"one of several ranges", to_ports(R"("tcp/80", "tcp/8000-8999", "udp/53")"), tcp(8443), EC_STEERED_TUNNEL},
        Case{"another of several", to_ports(R"("tcp/80", "tcp/8000-8999", "udp/53")"), udp(53), EC_STEERED_TUNNEL},
        Case{"none of several", to_ports(R"("tcp/80", "tcp/8000-8999", "udp/53")"), tcp(53), EC_BYPASSED},
        Case{"a whole protocol has every port", to_ports(R"("tcp")"), tcp(1), EC_STEERED_TUNNEL},
        Case{"a whole protocol has port 0", to_ports(R"("tcp")"), tcp(0), EC_STEERED_TUNNEL},
        Case{"a whole protocol is no other", to_ports(R"("tcp")"), udp(1), EC_BYPASSED},
        Case{"a port of SCTP", to_ports(R"("sctp/36412")"), sctp(36412), EC_STEERED_TUNNEL},
        Case{"another port of SCTP", to_ports(R"("sctp/36412")"), sctp(36413), EC_BYPASSED},
        Case{"icmp", to_ports(R"("icmp")"), pod_sends(kOutside).icmp(kEcho), EC_STEERED_TUNNEL},
        Case{"icmp is that of IPv6 too", to_ports(R"("icmp")"), pod_sends(kOutside6).icmp(kEcho6), EC_STEERED_TUNNEL},
        Case{"icmp is no UDP", to_ports(R"("icmp")"), udp(8), EC_BYPASSED},
        Case{"gre", to_ports(R"("gre")"), of_protocol(IPPROTO_GRE), EC_STEERED_TUNNEL},
        Case{"esp", to_ports(R"("esp")"), of_protocol(IPPROTO_ESP), EC_STEERED_TUNNEL},
        Case{"ah", to_ports(R"("ah")"), of_protocol(IPPROTO_AH), EC_STEERED_TUNNEL},
        Case{"esp over IPv6", to_ports(R"("esp")"), of_protocol(IPPROTO_ESP, kOutside6), EC_STEERED_TUNNEL},
        Case{"ah over IPv6", to_ports(R"("ah")"), of_protocol(IPPROTO_AH, kOutside6), EC_STEERED_TUNNEL},
        Case{"gre is no esp", to_ports(R"("gre")"), of_protocol(IPPROTO_ESP), EC_BYPASSED},
        Case{"any is every protocol", to_ports(R"("any")"), of_protocol(253), EC_STEERED_TUNNEL},
        Case{"a port behind IP options", to_ports(R"("tcp/443")"), tcp(443).ip_header_words(9), EC_STEERED_TUNNEL},
        Case{"a port behind extension headers", to_ports(R"("tcp/443")"),
             tcp(443, kOutside6).extension(IPPROTO_HOPOPTS).extension(IPPROTO_DSTOPTS, 24), EC_STEERED_TUNNEL},
        Case{"a first fragment has ports", to_ports(R"("udp/53")"), udp(53).fragment(1, 0, true), EC_STEERED_TUNNEL},
        Case{"a later fragment ahead of its first is dropped", to_ports(R"("udp/53")"),
             pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_DROP_FRAGMENT},
        Case{"a later IPv6 fragment ahead of its first is dropped", to_ports(R"("udp/53")"),
             pod_sends(kOutside6).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_DROP_FRAGMENT},
        Case{"a later fragment needs no first one where there are no port rules", to_ports(R"("any")"),
             pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_STEERED_TUNNEL}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    LongestPrefix, Rules,
    ::testing::Values(
        Case{"the class's ports are those of a destination without", own_ports(), tcp(443, "198.51.7.7"),
             EC_STEERED_TUNNEL},
        Case{"other ports of such a destination are not steered", own_ports(), udp(53, "198.51.7.7"), EC_BYPASSED},
        Case{"a destination's own ports are steered", own_ports(), udp(53), EC_STEERED_TUNNEL},
        Case{"a destination's own ports replace the class's", own_ports(), tcp(443), EC_BYPASSED},
        Case{"an exception within the destination bypasses", own_ports(), udp(53, "198.51.100.65"), EC_BYPASSED},
        Case{"a destination within the exception is steered", own_ports(), of_protocol(253, "198.51.100.97"),
             EC_STEERED_TUNNEL},
        Case{"what is behind that destination bypasses", own_ports(), tcp(443, "198.51.100.64"), EC_BYPASSED},
        Case{"what no prefix has bypasses", own_ports(), tcp(443, "192.168.1.1"), EC_BYPASSED},
        Case{"a host has the longest prefix",
             both_families(R"("destinations": ["0.0.0.0/0"], "except": ["198.51.100.7/32"])"), tcp(1), EC_BYPASSED},
        Case{"an IPv6 host has the longest prefix",
             both_families(R"("destinations": ["::/0"], "except": ["2001:db8:51::7/128"])"), tcp(1, kOutside6),
             EC_BYPASSED},
        Case{"its neighbour is another host",
             both_families(R"("destinations": ["::/0"], "except": ["2001:db8:51::6/128"])"), tcp(1, kOutside6),
             EC_STEERED_TUNNEL},
        Case{"an IPv6 prefix between others",
             both_families(R"("destinations": ["::/0", "2001:db8:51::/64"], "except": ["2001:db8::/32"])"),
             tcp(1, kOutside6), EC_STEERED_TUNNEL},
        Case{"everything of one family is nothing of the other", both_families(R"("destinations": ["::/0"])"), tcp(1),
             EC_BYPASSED},
        Case{"nor the other way round", both_families(R"("destinations": ["0.0.0.0/0"])"), tcp(1, kOutside6),
             EC_BYPASSED}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Otherwise, Rules,
    ::testing::Values(
        Case{"what matches is steered", or_drop(), tcp(443), EC_STEERED_TUNNEL},
        Case{"what matches no destination is dropped", or_drop(), tcp(443, "203.0.114.7"), EC_DROP_OTHERWISE},
        Case{"what matches no port is dropped", or_drop(), tcp(80), EC_DROP_OTHERWISE},
        Case{"another protocol is dropped", or_drop(), pod_sends(kOutside).icmp(kEcho), EC_DROP_OTHERWISE},
        Case{"IPv6 that matches is steered", or_drop(), tcp(443, kOutside6), EC_STEERED_TUNNEL},
        Case{"IPv6 that matches no destination is dropped", or_drop(), tcp(443, "2001:db8:52::7"), EC_DROP_OTHERWISE},
        Case{"IPv6 that matches no port is dropped", or_drop(), udp(443, kOutside6), EC_DROP_OTHERWISE},
        Case{"an exception bypasses", or_drop(), tcp(80, "198.51.100.129"), EC_BYPASSED},
        Case{"an exception in no destination bypasses", or_drop(), tcp(80, "192.168.1.1"), EC_BYPASSED},
        Case{"what stays on the link bypasses", or_drop(), udp(5353, "224.0.0.251"), EC_BYPASSED},
        Case{"the cluster bypasses", or_drop(), tcp(443, kServiceIp), EC_BYPASSED},
        Case{"a later fragment to no destination is dropped for that", or_drop(),
             pod_sends("203.0.114.7").fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_DROP_OTHERWISE},
        Case{"a later fragment to an exception bypasses", or_drop(),
             pod_sends("192.168.1.1").fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_BYPASSED},
        Case{"a later fragment to a destination waits for the ports", or_drop(),
             pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_DROP_FRAGMENT}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    OtherFamily, Rules,
    ::testing::Values(
        Case{"IPv6 is dropped without an IPv6 egress IP", only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"])"),
             tcp(443, kOutside6), EC_DROP_FAMILY},
        Case{"IPv4 is dropped without an IPv4 egress IP", only_ipv6(R"("destinations": ["0.0.0.0/0", "::/0"])"),
             tcp(443), EC_DROP_FAMILY},
        Case{"IPv4 is steered then", only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"])"), tcp(443),
             EC_STEERED_TUNNEL},
        Case{"IPv6 is steered then", only_ipv6(R"("destinations": ["0.0.0.0/0", "::/0"])"), tcp(443, kOutside6),
             EC_STEERED_TUNNEL},
        Case{"bypass lets it pass", only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"], "otherFamily": "bypass")"),
             tcp(443, kOutside6), EC_BYPASSED},
        Case{"bypass is not for the family that there is",
             only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"], "otherFamily": "bypass")"), tcp(443),
             EC_STEERED_TUNNEL},
        Case{"what is not steered is not of another family", only_ipv4(R"("destinations": ["0.0.0.0/0"])"),
             tcp(443, kOutside6), EC_BYPASSED},
        Case{"otherwise comes before it",
             only_ipv4(R"("destinations": ["0.0.0.0/0"], "otherwise": "drop", "otherFamily": "bypass")"),
             tcp(443, kOutside6), EC_DROP_OTHERWISE},
        Case{"an exception comes before it", only_ipv4(R"("destinations": ["::/0"], "except": ["2001:db8:51::/48"])"),
             tcp(443, kOutside6), EC_BYPASSED},
        Case{"a later fragment is dropped likewise", only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"])"),
             pod_sends(kOutside6).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_DROP_FAMILY},
        Case{"a later fragment bypasses likewise",
             only_ipv4(R"("destinations": ["0.0.0.0/0", "::/0"], "otherFamily": "bypass")"),
             pod_sends(kOutside6).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64), EC_BYPASSED}),
    claim_as_name<Case>);

TEST_F(RulesTest, RepliesAreNotSubjectToPorts) {
  const std::uint32_t id = node_.configure_class(or_drop());
  node_.track("-p tcp -s 198.51.100.7 --sport 5555 -d 10.244.1.5 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED");
  const Packet reply = pod_sends(kOutside).tcp(80, 5555);
  EXPECT_EQ(node_.classify(reply).action, Action::kNext);
  node_.expect_counts({{id, EC_REPLIED, 1, reply.bytes().size()}});
}

TEST_F(RulesTest, RepliesToWhomNoRuleMatchesAreNotDropped) {
  const std::uint32_t id = node_.configure_class(or_drop());
  node_.track("-p udp -s 203.0.114.7 --sport 5555 -d 10.244.1.5 --dport 80 -u SEEN_REPLY,ASSURED");
  const Packet reply = pod_sends("203.0.114.7").udp(80, 5555);
  EXPECT_EQ(node_.classify(reply).action, Action::kNext);
  node_.expect_counts({{id, EC_REPLIED, 1, reply.bytes().size()}});
}

TEST_F(RulesTest, AnErrorAboutAFlowOfThePodGoesTheWayOfTheFlow) {
  // The pod's own flow is steered by a port that an ICMP message does not have.
  const std::uint32_t id = node_.configure_class(to_ports(R"("udp/53")"));
  const Packet request = udp(53);
  const Packet error =
      pod_sends(kOutside).icmp(kUnreachable, 3).about(Packet().ip(kOutside, kPod).udp(53, 40000).payload(8));
  EXPECT_EQ(node_.classify(error).action, Action::kNext) << "there is no such flow yet";
  EXPECT_EQ(node_.classify(request).action, Action::kRedirect);
  EXPECT_EQ(node_.classify(error).action, Action::kRedirect);
  node_.expect_counts({{id, EC_STEERED_TUNNEL, 2, request.bytes().size() + error.bytes().size()},
                       {id, EC_BYPASSED, 1, error.bytes().size()}});
}

// --- what is not in the maps --------------------------------------------------------------------------------------

/// Only some ports of TCP, and the rest is none of the class's business.
class MissingRules : public RulesTest {
 protected:
  MissingRules() : id_(node_.configure_class(to_ports(R"("tcp/443")"))) {}

  /// Erases what is in the map for which `is_meant` is true.
  template <class Key, class IsMeant>
  void erase_all(const char* map, IsMeant is_meant) {
    auto opened = BpfMap<Key, std::conditional_t<std::is_same_v<Key, ec_rule_key>, ec_rule, __u32>>::open(map);
    ASSERT_TRUE(opened);
    const auto keys = opened->keys();
    ASSERT_TRUE(keys);
    for (const auto& key : *keys)
      if (is_meant(key)) node_.erase(map, key);
  }
  void erase_ruleset(std::uint32_t number) {
    erase_all<ec_rule_key>("rules", [&](const ec_rule_key& key) { return key.tree >> 1U == number; });
  }
  void expect_dropped(const Packet& packet) {
    EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
    node_.expect_counts({{id_, EC_DROP_RULES_MISSING, 1, packet.bytes().size()}});
  }

  std::uint32_t id_;
};

TEST_F(MissingRules, WhatNobodyListedIsBypassedWhileAllIsThere) {
  EXPECT_EQ(node_.classify(pod_sends(kOutside).tcp(1, 80)).action, Action::kNext);
}

TEST_F(MissingRules, WithoutTheDestinationsOfTheClassItIsDropped) {
  erase_ruleset(node_.find<ec_class>("classes", id_)->ruleset);
  expect_dropped(pod_sends(kOutside).tcp(1, 80));
}

TEST_F(MissingRules, SoIsALaterFragment) {
  erase_ruleset(node_.find<ec_class>("classes", id_)->ruleset);
  expect_dropped(pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(64));
}

TEST_F(MissingRules, WithoutThePortSetItIsDropped) {
  erase_all<ec_port_key>("ports", [](const ec_port_key&) { return true; });
  expect_dropped(pod_sends(kOutside).tcp(1, 80));
}

TEST_F(MissingRules, WithoutWhatIsNeverSteeredEverythingIsDropped) {
  erase_ruleset(EC_RULESET_NEVER);
  expect_dropped(pod_sends(kServiceIp).tcp(1, 80));
}

}  // namespace
}  // namespace egressclass
