// SPDX-License-Identifier: Apache-2.0
// classify: what becomes of what a pod sends.
#include <arpa/inet.h>
#include <netinet/in.h>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint32_t kOtherBits = 0xa5a50000;  // of the mark: not ours
static_assert((kOtherBits & kMask) == 0);

constexpr std::uint8_t kEchoReply = 0;
constexpr std::uint8_t kUnreachable = 3;
constexpr std::uint8_t kEcho = 8;
constexpr std::uint8_t kTimeExceeded = 11;
constexpr std::uint8_t kPacketTooBig6 = 2;
constexpr std::uint8_t kEcho6 = 128;
constexpr std::uint8_t kSctpInit = 1;
constexpr std::uint8_t kSctpInitAck = 2;
constexpr std::uint8_t kNeighbourSolicitation6 = 135;

struct Case {
  const char* claim;
  void (*given)(Node& node) = nullptr;
  std::vector<std::string> tracked = {};  // flows
  Packet packet;
  const char* device = "pod0";
  std::uint32_t mark = 0;
  Action action;
  std::uint32_t class_id = kTunnelClass;
  std::optional<ec_event> counted = {};
  std::uint32_t mark_after = 0;  // on what is not dropped
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.claim << ", given" << c.packet; }

// The flows that conntrack knows: another opened one to the pod, to its address or to a port of the node, or the pod
// opened it itself.
std::string flow(const char* protocol, const char* src, unsigned sport, const char* dst, unsigned dport) {
  const bool tcp = std::string(protocol) == "tcp";
  return std::string("-p ") + protocol + " -s " + src + " --sport " + std::to_string(sport) + " -d " + dst +
         " --dport " + std::to_string(dport) + (tcp ? " --state ESTABLISHED" : "") + " -u SEEN_REPLY,ASSURED";
}

std::string inbound(const char* protocol, const char* pod = kPod) { return flow(protocol, kOutside, 5555, pod, 80); }

std::string inbound_by_host_port(const char* protocol) {
  return flow(protocol, kOutside, 5555, kUnderlay, 8080) + " -r " + kPod + " --reply-port-src 80 -q " + kOutside +
         " --reply-port-dst 5555";
}

std::string own(const char* protocol) { return flow(protocol, kPod, 80, kOutside, 5555); }

Packet request() { return Packet().ip(kOutside, kPod); }  // what the pod has got in such a flow

class ClassifyTest : public DatapathTest {
 protected:
  Outcome from_pod(const Packet& packet, std::uint32_t mark = 0) { return node_.classify(packet, "pod0", mark); }
};

/// To the tunnel goes what the other end takes; the host's own stack gets what is marked; the rest is untouched.
Bytes as_it_goes_on(const Case& c) {
  Packet packet = c.packet;
  if (c.counted == EC_STEERED_TUNNEL) return in_tunnel(packet, kUnderlay, kGateway).bytes();
  if (c.counted == EC_REPLIED) packet.to(std::string(c.device) == "pod0" ? kPodHostMac : kLocalPodHostMac);
  return packet.bytes();
}

class Classify : public ClassifyTest, public ::testing::WithParamInterface<Case> {};

TEST_P(Classify, Claim) {
  const Case& c = GetParam();
  for (const std::string& tracked : c.tracked) node_.track(tracked);
  if (c.given != nullptr) c.given(node_);

  const Bytes packet = c.packet.bytes();
  const Outcome run = node_.run(Program::kClassify, packet, node_.ifindex(c.device), c.mark);

  EXPECT_EQ(run.action, c.action);
  if (c.action != Action::kDrop) {
    EXPECT_EQ(run.mark, c.mark_after) << "the mark is wrong";
    EXPECT_EQ(hex_dump(run.data), hex_dump(as_it_goes_on(c))) << "the packet that goes on is wrong";
  }
  std::vector<Count> counts;
  if (c.counted) counts.push_back({c.class_id, *c.counted, 1, packet.size()});
  node_.expect_counts(counts);
}

INSTANTIATE_TEST_SUITE_P(
    Frames, Classify,
    ::testing::Values(Case{.claim = "ARP passes uncounted",
                           .packet = Packet().from(kPodMac).to(kPodHostMac).arp(kPod, "10.244.1.1"),
                           .action = Action::kNext},
                      Case{.claim = "a VLAN tag is not IP",
                           .packet = pod_sends(kOutside).vlan(7).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "ARP under a VLAN tag is not ARP",
                           .packet = Packet().from(kPodMac).to(kPodHostMac).vlan(7).arp(kPod, "10.244.1.1"),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "an unknown ethertype is not IP",
                           .packet = pod_sends(kOutside).udp(1, 2).ether_type(0x88cc),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "version 6 under the ethertype of IPv4 is not IP",
                           .packet = pod_sends(kOutside).ip_version(6).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "version 4 under the ethertype of IPv6 is not IP",
                           .packet = pod_sends(kOutside6).ip_version(4).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "an IPv4 header of four words is not IP",
                           .packet = pod_sends(kOutside).ip_header_words(4).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Records, Classify,
    ::testing::Values(Case{.claim = "without an attachment everything is dropped",
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .device = "outside",
                           .action = Action::kDrop,
                           .class_id = 0,
                           .counted = EC_DROP_NO_ATTACHMENT},
                      Case{.claim = "without an attachment ARP is dropped too",
                           .packet = Packet().from(kPodMac).to(kPodHostMac).arp(kPod, "10.244.1.1"),
                           .device = "outside",
                           .action = Action::kDrop,
                           .class_id = 0,
                           .counted = EC_DROP_NO_ATTACHMENT},
                      Case{.claim = "on a node without configuration the datapath is down",
                           .given = [](Node& node) { node.put("node", 0U, ec_node{}); },
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down nothing is steered",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down nothing is steered locally either",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = local_pod_sends(kOutside).udp(1, 2),
                           .device = "pod1",
                           .action = Action::kDrop,
                           .class_id = kLocalClass,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down an except prefix is dropped too, since it is not known",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = pod_sends("10.1.2.3").udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down the cluster is reached",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = pod_sends(kRemotePod).udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "with the datapath down multicast is the CNI's",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = pod_sends("224.0.0.251").udp(5353, 5353),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "with the datapath down spoofing is spoofing",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = pod_sends(kRemotePod).ip(kLocalPod, kRemotePod).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "a class that is no more drops",
                           .given = [](Node& node) { node.erase("classes", kTunnelClass); },
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "a class that is no more reaches the cluster",
                           .given = [](Node& node) { node.erase("classes", kTunnelClass); },
                           .packet = pod_sends(kServiceIp).udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "a write to the attachment changes the class of a running pod",
                           .given =
                               [](Node& node) {
                                 node.change<ec_attachment>("attachments", node.ifindex("pod0"),
                                                            [](ec_attachment& pod) { pod.class_id = kLocalClass; });
                               },
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .action = Action::kRedirect,
                           .mark_after = new_mark_of(kLocalClass)}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    OnLink, Classify,
    ::testing::Values(Case{.claim = "multicast bypasses",
                           .packet = pod_sends("239.1.2.3").udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "the last multicast address bypasses",
                           .packet = pod_sends("239.255.255.255").udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "what is below multicast is steered",
                           .packet = pod_sends("223.255.255.255").udp(1, 2),
                           .action = Action::kRedirect,
                           .counted = EC_STEERED_TUNNEL,
                           .mark_after = mark_of(kTunnelClass)},
                      Case{.claim = "what is above multicast is steered",
                           .packet = pod_sends("240.0.0.1").udp(1, 2),
                           .action = Action::kRedirect,
                           .counted = EC_STEERED_TUNNEL,
                           .mark_after = mark_of(kTunnelClass)},
                      Case{.claim = "the broadcast of a pod that has no address yet bypasses",
                           .packet = pod_sends("255.255.255.255").ip("0.0.0.0", "255.255.255.255").udp(68, 67),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "link-local bypasses",
                           .packet = pod_sends("169.254.169.254").tcp(1, 80, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "what is beside link-local is steered",
                           .packet = pod_sends("169.253.169.254").tcp(1, 80, kSyn),
                           .action = Action::kRedirect,
                           .counted = EC_STEERED_TUNNEL,
                           .mark_after = mark_of(kTunnelClass)},
                      Case{.claim = "IPv6 multicast bypasses",
                           .packet = pod_sends("ff02::fb").udp(5353, 5353),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "IPv6 multicast of global scope bypasses",
                           .packet = pod_sends("ff0e::1").udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "duplicate address detection bypasses",
                           .packet = pod_sends("ff02::1").ip("::", "ff02::1:ff00:5").icmp(kNeighbourSolicitation6),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "IPv6 link-local bypasses",
                           .packet = pod_sends("fe80::1").icmp(kNeighbourSolicitation6),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "the end of IPv6 link-local bypasses",
                           .packet = pod_sends("febf::1").udp(1, 2),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED},
                      Case{.claim = "what is beside IPv6 link-local is not of it",
                           .packet = pod_sends("fec0::1").udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_FAMILY}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Spoofing, Classify,
    ::testing::Values(Case{.claim = "an address of nobody is spoofed",
                           .packet = pod_sends(kOutside).ip("10.244.1.99", kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "an IPv6 address of nobody is spoofed",
                           .packet = pod_sends(kOutside6).ip("fd00:244:1::99", kOutside6).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "the address of another pod of this node is spoofed",
                           .packet = pod_sends(kOutside).ip(kLocalPod, kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "the IPv6 address of another pod of this node is spoofed",
                           .packet = pod_sends(kOutside6).ip(kLocalPod6, kOutside6).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "the node's own address is spoofed",
                           .packet = pod_sends(kOutside).ip(kUnderlay, kOutside).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "another MAC address is spoofed",
                           .packet = pod_sends(kOutside).from(kForeignMac).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "a MAC address that differs in its last byte is spoofed",
                           .packet = pod_sends(kOutside).from({0x0a, 0, 0, 0, 1, 6}).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "another MAC address is spoofed with IPv6 too",
                           .packet = pod_sends(kOutside6).from(kForeignMac).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "spoofing towards the cluster is spoofing",
                           .packet = pod_sends(kRemotePod).ip(kLocalPod, kRemotePod).udp(1, 2),
                           .action = Action::kDrop,
                           .counted = EC_DROP_SPOOFED},
                      Case{.claim = "one pod's packet behind another pod's veth is spoofed, and counts there",
                           .packet = pod_sends(kOutside).udp(1, 2),
                           .device = "pod1",
                           .action = Action::kDrop,
                           .class_id = kLocalClass,
                           .counted = EC_DROP_SPOOFED}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    NeverSteered, Classify,
    ::testing::Values(Case{.claim = "the cluster bypasses, although it is among the destinations",
                           .packet = pod_sends(kServiceIp).tcp(1, 443, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "the cluster bypasses, although a destination is more specific",
                           .given = [](Node& node) { node.put_rule(kTunnelRules, "100.64.0.10/32", EC_STEER); },
                           .packet = pod_sends(kServiceIp).tcp(1, 443, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "what is beside the cluster is steered",
                           .packet = pod_sends("100.65.0.10").tcp(1, 443, kSyn),
                           .action = Action::kRedirect,
                           .counted = EC_STEERED_TUNNEL,
                           .mark_after = mark_of(kTunnelClass)},
                      Case{.claim = "a node bypasses, although it is among the destinations",
                           .packet = pod_sends(kGateway).tcp(1, 22, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "the IPv6 cluster bypasses, although it is among the destinations",
                           .packet = pod_sends(kServiceIp6).tcp(1, 443, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)},
                      Case{.claim = "an IPv6 node bypasses, although it is among the destinations",
                           .packet = pod_sends(kNode6).tcp(1, 22, kSyn),
                           .action = Action::kNext,
                           .counted = EC_BYPASSED,
                           .mark_after = bypass_mark(kMask)}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Destinations, Classify,
    ::testing::Values(
        Case{.claim = "a destination is steered",
             .packet = pod_sends(kOutside).udp(1, 2),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = mark_of(kTunnelClass)},
        Case{.claim = "except beats the shorter prefix of destinations",
             .packet = pod_sends("10.1.2.3").udp(1, 2),
             .action = Action::kNext,
             .counted = EC_BYPASSED},
        Case{.claim = "a destination beats the shorter prefix of except",
             .packet = pod_sends("10.99.1.1").udp(1, 2),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = mark_of(kTunnelClass)},
        Case{.claim = "except within a destination within except bypasses",
             .packet = pod_sends("10.99.7.1").udp(1, 2),
             .action = Action::kNext,
             .counted = EC_BYPASSED},
        Case{.claim = "a host prefix counts",
             .given = [](Node& node) { node.put_rule(kTunnelRules, "198.51.100.7/32", EC_BYPASS); },
             .packet = pod_sends(kOutside).udp(1, 2),
             .action = Action::kNext,
             .counted = EC_BYPASSED},
        Case{.claim = "a host prefix is not its neighbour",
             .given = [](Node& node) { node.put_rule(kTunnelRules, "198.51.100.6/32", EC_BYPASS); },
             .packet = pod_sends(kOutside).udp(1, 2),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = mark_of(kTunnelClass)},
        Case{.claim = "what no rule matches bypasses, and ::/0 does not match IPv4",
             .packet = local_pod_sends("192.168.1.1").udp(1, 2),
             .device = "pod1",
             .action = Action::kNext,
             .class_id = kLocalClass,
             .counted = EC_BYPASSED},
        Case{.claim = "an except of one class is not one of another",
             .packet = pod_sends("198.51.100.200").udp(1, 2),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = mark_of(kTunnelClass)},
        Case{.claim = "an except of the class itself bypasses",
             .packet = local_pod_sends("198.51.100.200").udp(1, 2),
             .device = "pod1",
             .action = Action::kNext,
             .class_id = kLocalClass,
             .counted = EC_BYPASSED},
        Case{.claim = "IPv6 to a destination is dropped, since the class has no IPv6 egress IP",
             .packet = pod_sends(kOutside6).tcp(1, 443, kSyn),
             .action = Action::kDrop,
             .counted = EC_DROP_FAMILY},
        Case{.claim = "ping over IPv6 is dropped likewise",
             .packet = pod_sends(kOutside6).icmp(kEcho6),
             .action = Action::kDrop,
             .counted = EC_DROP_FAMILY},
        Case{.claim = "an ICMPv6 error is dropped likewise",
             .packet = pod_sends(kOutside6).icmp(kPacketTooBig6).about(Packet().ip(kOutside6, kPod6).udp(5555, 80)),
             .action = Action::kDrop,
             .counted = EC_DROP_FAMILY},
        Case{.claim = "IPv6 is dropped where a class of local path has it among the destinations",
             .packet = local_pod_sends(kOutside6).udp(1, 2),
             .device = "pod1",
             .action = Action::kDrop,
             .class_id = kLocalClass,
             .counted = EC_DROP_FAMILY},
        Case{.claim = "IPv6 that no rule matches bypasses",
             .given = [](Node& node) { node.put_rule(kTunnelRules, "::/0", EC_OTHERWISE); },
             .packet = pod_sends(kOutside6).udp(1, 2),
             .action = Action::kNext,
             .counted = EC_BYPASSED},
        Case{.claim = "IPv6 to an except prefix bypasses",
             .packet = pod_sends("fd12::7").udp(1, 2),
             .action = Action::kNext,
             .counted = EC_BYPASSED}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Marks, Classify,
    ::testing::Values(
        Case{.claim = "a packet of a local class gets the id of its class, which the gateway counts",
             .packet = local_pod_sends(kOutside).udp(1, 2),
             .device = "pod1",
             .action = Action::kRedirect,
             .mark_after = new_mark_of(kLocalClass)},
        Case{.claim = "the id of a local class replaces all bits of a mark that the packet has",
             .packet = local_pod_sends(kOutside).udp(1, 2),
             .device = "pod1",
             .mark = 0xffffffff,
             .action = Action::kRedirect,
             .mark_after = new_mark_of(kLocalClass)},
        Case{.claim = "a fragment of a local class has its id too",
             .packet = local_pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(400),
             .device = "pod1",
             .action = Action::kRedirect,
             .mark_after = new_mark_of(kLocalClass)},
        Case{.claim = "the mark of a tunnel class is set under the mask, and other bits stay",
             .packet = pod_sends(kOutside).udp(1, 2),
             .mark = kOtherBits | mark_of(kLocalClass),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = kOtherBits | mark_of(kTunnelClass)},
        Case{.claim = "the reply mark is set under the mask, and other bits stay",
             .packet = pod_sends(kOutside).icmp(kEchoReply),
             .mark = kOtherBits | mark_of(kLocalClass),
             .action = Action::kNext,
             .counted = EC_REPLIED,
             .mark_after = kOtherBits | reply_mark(kMask)},
        Case{.claim = "the bypass mark is set under the mask on what goes to the cluster, and other bits stay",
             .packet = pod_sends(kRemotePod).udp(1, 2),
             .mark = kOtherBits | mark_of(kLocalClass),
             .action = Action::kNext,
             .counted = EC_BYPASSED,
             .mark_after = kOtherBits | bypass_mark(kMask)},
        Case{.claim = "what bypasses by an except prefix keeps its mark",
             .packet = pod_sends("10.1.2.3").udp(1, 2),
             .mark = kOtherBits,
             .action = Action::kNext,
             .counted = EC_BYPASSED,
             .mark_after = kOtherBits},
        Case{.claim = "what stays on the link keeps its mark",
             .packet = pod_sends("224.0.0.251").udp(5353, 5353),
             .mark = kOtherBits,
             .action = Action::kNext,
             .counted = EC_BYPASSED,
             .mark_after = kOtherBits},
        Case{.claim = "a local class needs no gateway that answers",
             .given = [](Node& node) { node.erase("gateways", ec(kGateway)); },
             .packet = local_pod_sends(kOutside).udp(1, 2),
             .device = "pod1",
             .action = Action::kRedirect,
             .mark_after = new_mark_of(kLocalClass)},
        Case{.claim = "without the way into the gateway's namespace a packet of a local class is dropped",
             .given = [](Node& node) { node.cut_off_gateway(); },
             .packet = local_pod_sends(kOutside).udp(1, 2),
             .device = "pod1",
             .action = Action::kDrop,
             .class_id = kLocalClass,
             .counted = EC_DROP_GATEWAY_GONE},
        Case{.claim = "on a node that is no gateway the way is not there either",
             .given = [](Node& node) { node.change<ec_node>("node", 0U, [](ec_node& n) { n.gateway_ifindex = 0; }); },
             .packet = local_pod_sends(kOutside).udp(1, 2),
             .device = "pod1",
             .action = Action::kDrop,
             .class_id = kLocalClass,
             .counted = EC_DROP_GATEWAY_GONE},
        Case{.claim = "a tunnel class needs no such way",
             .given = [](Node& node) { node.cut_off_gateway(); },
             .packet = pod_sends(kOutside).udp(1, 2),
             .action = Action::kRedirect,
             .counted = EC_STEERED_TUNNEL,
             .mark_after = mark_of(kTunnelClass)}),
    claim_as_name<Case>);

// --- answers to what others opened -------------------------------------------------------------------------------

/// A packet that answers, and so goes back as it came.
Case replied(const char* claim, std::vector<std::string> tracked, const Packet& packet) {
  return {.claim = claim,
          .tracked = std::move(tracked),
          .packet = packet,
          .action = Action::kNext,
          .counted = EC_REPLIED,
          .mark_after = reply_mark(kMask)};
}

/// A packet that does not, or that cannot be seen to.
Case steered(const char* claim, std::vector<std::string> tracked, const Packet& packet) {
  return {.claim = claim,
          .tracked = std::move(tracked),
          .packet = packet,
          .action = Action::kRedirect,
          .counted = EC_STEERED_TUNNEL,
          .mark_after = mark_of(kTunnelClass)};
}

/// A packet that ends too early.
Case is_no_ip(const char* claim, const Packet& packet) {
  return {.claim = claim, .packet = packet, .action = Action::kDrop, .counted = EC_DROP_NOT_IP};
}

/// An SCTP packet between the ports 80 and 5555: the common header, and one chunk's.
Bytes sctp(std::uint8_t chunk) { return {0, 80, 0x15, 0xb3, 0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 4}; }

INSTANTIATE_TEST_SUITE_P(
    Replies, Classify,
    ::testing::Values(
        replied("TCP answers a connection to the pod", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5555)),
        replied("UDP answers a flow to the pod", {inbound("udp")}, pod_sends(kOutside).udp(80, 5555)),
        replied("TCP answers a connection by way of a host port", {inbound_by_host_port("tcp")},
                pod_sends(kOutside).tcp(80, 5555)),
        replied("UDP answers a flow by way of a host port", {inbound_by_host_port("udp")},
                pod_sends(kOutside).udp(80, 5555)),
        replied("SYN with ACK answers", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5555, kSyn | kAck)),
        replied("FIN answers", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5555, kFin | kAck)),
        replied("RST without ACK answers", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5555, kRst)),
        steered("SYN never answers, although an old flow says so", {inbound("tcp")},
                pod_sends(kOutside).tcp(80, 5555, kSyn)),
        steered("SYN with FIN opens too", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5555, kSyn | kFin)),
        steered("a flow that the pod opened is steered", {own("tcp")}, pod_sends(kOutside).tcp(80, 5555)),
        steered("a UDP flow that the pod opened is steered", {own("udp")}, pod_sends(kOutside).udp(80, 5555)),
        steered("a flow that conntrack does not know is steered", {}, pod_sends(kOutside).tcp(80, 5555)),
        steered("a flow of another protocol is another", {inbound("udp")}, pod_sends(kOutside).tcp(80, 5555)),
        steered("a flow from another port is another", {inbound("tcp")}, pod_sends(kOutside).tcp(81, 5555)),
        steered("a flow to another port is another", {inbound("tcp")}, pod_sends(kOutside).tcp(80, 5556)),
        steered("a flow to another address is another", {inbound("udp")}, pod_sends("198.51.100.8").udp(80, 5555)),
        steered("a flow to another pod is another", {inbound("udp", kLocalPod)}, pod_sends(kOutside).udp(80, 5555)),
        steered("a protocol without ports is steered", {inbound("udp")},
                pod_sends(kOutside).protocol(IPPROTO_GRE).payload(Bytes{0, 80, 0x15, 0xb3, 0, 0, 0, 0})),
        steered("SCTP that opens is steered", {}, pod_sends(kOutside).protocol(IPPROTO_SCTP).payload(sctp(kSctpInit))),
        replied("SCTP that does not open, and of which nothing is known, answers", {},
                pod_sends(kOutside).protocol(IPPROTO_SCTP).payload(sctp(kSctpInitAck))),
        replied("ports are found behind IP options", {inbound("udp")},
                pod_sends(kOutside).ip_header_words(8).udp(80, 5555)),
        replied("TCP flags are found behind the most IP options", {inbound("tcp")},
                pod_sends(kOutside).ip_header_words(15).tcp(80, 5555)),
        steered("SYN is found behind IP options", {inbound("tcp")},
                pod_sends(kOutside).ip_header_words(8).tcp(80, 5555, kSyn)),
        is_no_ip("a TCP header without flags is none", pod_sends(kOutside).tcp(80, 5555).cut(14 + 20 + 13)),
        replied("a TCP header that ends with its flags answers", {inbound("tcp")},
                pod_sends(kOutside).tcp(80, 5555).cut(14 + 20 + 14)),
        is_no_ip("a UDP header without ports is none", pod_sends(kOutside).udp(80, 5555).cut(14 + 20 + 3)),
        Case{.claim = "a reply needs no gateway that answers",
             .given = [](Node& node) { node.erase("gateways", ec(kGateway)); },
             .tracked = {inbound("tcp")},
             .packet = pod_sends(kOutside).tcp(80, 5555),
             .action = Action::kNext,
             .counted = EC_REPLIED,
             .mark_after = reply_mark(kMask)},
        Case{.claim = "the reply of a pod of a local class goes back as the request came",
             .tracked = {inbound("tcp", kLocalPod)},
             .packet = local_pod_sends(kOutside).tcp(80, 5555),
             .device = "pod1",
             .action = Action::kNext,
             .class_id = kLocalClass,
             .counted = EC_REPLIED,
             .mark_after = reply_mark(kMask)},
        Case{.claim = "the reply of a class that is no more is dropped",
             .given = [](Node& node) { node.erase("classes", kTunnelClass); },
             .tracked = {inbound("tcp")},
             .packet = pod_sends(kOutside).tcp(80, 5555),
             .action = Action::kDrop,
             .counted = EC_DROP_CLASS_REMOVED}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Icmp, Classify,
    ::testing::Values(
        replied("an echo reply answers", {}, pod_sends(kOutside).icmp(kEchoReply)),
        steered("an echo request opens", {}, pod_sends(kOutside).icmp(kEcho)),
        steered("an echo request opens, whatever its payload looks like", {inbound("udp")},
                pod_sends(kOutside).icmp(kEcho).about(request().udp(5555, 80))),
        replied("an error about a UDP flow to the pod answers", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80).payload(32))),
        replied("an error about a TCP connection to the pod answers", {inbound("tcp")},
                pod_sends(kOutside).icmp(kTimeExceeded).about(request().tcp(5555, 80, kSyn))),
        replied("an error about a flow by way of a host port answers", {inbound_by_host_port("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80))),
        steered("an error about what another pod received is steered", {inbound("udp", kLocalPod)},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(Packet().ip(kOutside, kLocalPod).udp(5555, 80))),
        replied("an error about as much as four bytes of the transport header answers", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80).cut(14 + 20 + 4))),
        replied("an error behind IP options answers", {inbound("udp")},
                pod_sends(kOutside).ip_header_words(7).icmp(kUnreachable, 3).about(request().udp(5555, 80))),
        steered("an error about a flow that the pod opened is steered", {own("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80))),
        steered("an error about an unknown flow is steered", {},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80))),
        steered("an error about another port is steered", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 81))),
        steered("an error about what the pod sent itself is steered", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(Packet().ip(kPod, kOutside).udp(80, 5555))),
        steered("an error about less than the ports is steered", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().udp(5555, 80).cut(14 + 20 + 3))),
        replied("an error about a packet with IP options answers", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().ip_header_words(6).udp(5555, 80))),
        steered("an error about a packet with IP options that look like ports is steered",
                {flow("udp", kOutside, 0x0101, kPod, 0x0101)},
                pod_sends(kOutside).icmp(kUnreachable, 3).about(request().ip_header_words(6).udp(5555, 80))),
        steered("an error about another protocol is steered", {inbound("udp")},
                pod_sends(kOutside).icmp(kUnreachable, 2).about(request().protocol(IPPROTO_SCTP).payload(8))),
        is_no_ip("a cut ICMP header is none", pod_sends(kOutside).icmp(kEchoReply).cut(14 + 20 + 7))),
    claim_as_name<Case>);

Packet first_fragment(const char* dst, std::uint16_t id) {
  return pod_sends(dst).fragment(id, 0, true).udp(80, 5555).payload(1472);
}

Packet later_fragment(const char* dst, std::uint16_t id) {
  return pod_sends(dst).fragment(id, 1480, false).protocol(IPPROTO_UDP).payload(400);
}

TEST_F(ClassifyTest, LaterFragmentsOfAReplyFollowItsFirst) {
  node_.track(inbound("udp"));
  EXPECT_EQ(from_pod(first_fragment(kOutside, 1)).mark, reply_mark(kMask));
  const Outcome later = from_pod(later_fragment(kOutside, 1), kOtherBits);
  EXPECT_EQ(later.action, Action::kNext);
  EXPECT_EQ(later.mark, kOtherBits | reply_mark(kMask));
  const Outcome middle = from_pod(pod_sends(kOutside).fragment(1, 2960, true).protocol(IPPROTO_UDP).payload(1480));
  EXPECT_EQ(middle.mark, reply_mark(kMask)) << "a fragment in the middle is a later one";
}

TEST_F(ClassifyTest, LaterFragmentsOfAnEchoReplyFollowItsFirst) {
  EXPECT_EQ(from_pod(pod_sends(kOutside).fragment(1, 0, true).icmp(kEchoReply).payload(1472)).mark, reply_mark(kMask));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1).protocol(IPPROTO_ICMP)).mark, reply_mark(kMask));
}

TEST_F(ClassifyTest, LaterFragmentsOfWhatIsNotKnownAreSteered) {
  node_.track(inbound("udp"));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1)).mark, mark_of(kTunnelClass)) << "it came before its first";
  EXPECT_EQ(from_pod(first_fragment(kOutside, 1)).mark, reply_mark(kMask));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 2)).mark, mark_of(kTunnelClass)) << "another packet's id";
  EXPECT_EQ(from_pod(later_fragment("198.51.100.8", 1)).mark, mark_of(kTunnelClass)) << "another destination";
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1).protocol(IPPROTO_ICMP)).mark, mark_of(kTunnelClass))
      << "another protocol";
}

TEST_F(ClassifyTest, AFragmentOfOnePodIsNoneOfAnothers) {
  node_.track(inbound("udp"));
  EXPECT_EQ(from_pod(first_fragment(kOutside, 1)).mark, reply_mark(kMask));
  const Packet others = local_pod_sends(kOutside).fragment(1, 1480, false).protocol(IPPROTO_UDP).payload(400);
  EXPECT_EQ(node_.run(Program::kClassify, others.bytes(), node_.ifindex("pod1")).mark, new_mark_of(kLocalClass));
}

TEST_F(ClassifyTest, LaterFragmentsNeverHavePorts) {
  node_.track(inbound("udp"));
  const Packet looks_like_udp = pod_sends(kOutside).fragment(1, 1480, false).udp(80, 5555);
  EXPECT_EQ(from_pod(looks_like_udp).mark, mark_of(kTunnelClass));
}

TEST_F(ClassifyTest, FragmentsOfOwnFlowsAreSteered) {
  node_.track(own("udp"));
  EXPECT_EQ(from_pod(first_fragment(kOutside, 1)).mark, mark_of(kTunnelClass));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1)).mark, mark_of(kTunnelClass));
}

TEST_F(ClassifyTest, AFirstFragmentOfAnOwnFlowEndsWhatItsIdMeant) {
  node_.track(inbound("udp"));
  EXPECT_EQ(from_pod(first_fragment(kOutside, 1)).mark, reply_mark(kMask));
  EXPECT_EQ(from_pod(pod_sends(kOutside).fragment(1, 0, true).udp(81, 5555)).mark, mark_of(kTunnelClass));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1)).mark, mark_of(kTunnelClass));
}

TEST_F(ClassifyTest, OnlyFragmentsAreRemembered) {
  node_.track(inbound("udp"));
  EXPECT_EQ(from_pod(pod_sends(kOutside).fragment(1, 0, false).udp(80, 5555)).mark, reply_mark(kMask));
  EXPECT_EQ(from_pod(later_fragment(kOutside, 1)).mark, mark_of(kTunnelClass));
}

// --- flows that the pod opened -----------------------------------------------------------------------------------

class Flows : public ClassifyTest {
 protected:
  static ec_flow_key key(std::uint8_t protocol) {
    return {.src = ec(kPod), .dst = ec(kOutside), .sport = htons(80), .dport = htons(5555), .proto = protocol};
  }
  std::optional<ec_flow> flow_of(std::uint8_t protocol) const { return node_.find<ec_flow>("flows", key(protocol)); }
  void put_flow(std::uint8_t protocol, std::uint64_t idle_ns) {
    node_.put("flows", key(protocol),
              ec_flow{.last_seen_ns = monotonic_ns() - idle_ns,
                      .gateway = ec(kGateway),
                      .class_id = kTunnelClass,
                      .generation = 0});
  }
  std::uint32_t mark_of_tcp(std::uint8_t flags) { return from_pod(pod_sends(kOutside).tcp(80, 5555, flags)).mark; }
  std::uint32_t mark_of_udp() { return from_pod(pod_sends(kOutside).udp(80, 5555)).mark; }
};

TEST_F(Flows, AConnectionOfThePodStaysSteeredWhateverConntrackComesToBelieve) {
  EXPECT_EQ(mark_of_tcp(kSyn), mark_of(kTunnelClass));
  node_.track(inbound("tcp"));
  EXPECT_EQ(mark_of_tcp(kAck), mark_of(kTunnelClass));
  EXPECT_EQ(mark_of_tcp(kFin | kAck), mark_of(kTunnelClass));
}

TEST_F(Flows, AUdpFlowOfThePodStaysSteeredWhateverConntrackComesToBelieve) {
  EXPECT_EQ(mark_of_udp(), mark_of(kTunnelClass));
  node_.track(inbound("udp"));
  EXPECT_EQ(mark_of_udp(), mark_of(kTunnelClass));
  EXPECT_EQ(mark_of_tcp(kAck), mark_of(kTunnelClass)) << "conntrack knows the UDP flow alone";
}

TEST_F(Flows, AConnectionOfThePodIsNotForgottenByTime) {
  put_flow(IPPROTO_TCP, 2 * EC_IDLE_FLOW_NS);
  node_.track(inbound("tcp"));
  EXPECT_EQ(mark_of_tcp(kAck), mark_of(kTunnelClass));
}

TEST_F(Flows, AUdpFlowOfThePodIsForgottenAfterALongSilence) {
  put_flow(IPPROTO_UDP, EC_IDLE_FLOW_NS + EC_FLOW_REFRESH_NS);
  node_.track(inbound("udp"));
  EXPECT_EQ(mark_of_udp(), reply_mark(kMask));
  EXPECT_FALSE(flow_of(IPPROTO_UDP)) << "the flow is another's now";
}

TEST_F(Flows, AUdpFlowOfThePodIsRememberedThroughAShorterSilence) {
  put_flow(IPPROTO_UDP, EC_IDLE_FLOW_NS - 60 * EC_FLOW_REFRESH_NS);
  node_.track(inbound("udp"));
  EXPECT_EQ(mark_of_udp(), mark_of(kTunnelClass));
}

TEST_F(Flows, SynWithAckAnswersAlthoughAnOlderConnectionOfThePodHadThePorts) {
  put_flow(IPPROTO_TCP, 0);
  node_.track(inbound("tcp"));
  EXPECT_EQ(mark_of_tcp(kSyn | kAck), reply_mark(kMask));
  EXPECT_EQ(mark_of_tcp(kAck), reply_mark(kMask)) << "the older connection is forgotten";
}

TEST_F(Flows, SynOpensAlthoughAnOlderConnectionFromOutsideHadThePorts) {
  node_.track(inbound("tcp"));
  EXPECT_EQ(mark_of_tcp(kAck), reply_mark(kMask));
  EXPECT_EQ(mark_of_tcp(kSyn), mark_of(kTunnelClass));
  EXPECT_EQ(mark_of_tcp(kAck), mark_of(kTunnelClass)) << "the connection is the pod's now";
}

TEST_F(Flows, AnswersAreNoFlowsOfThePod) {
  node_.track(inbound("tcp"));
  EXPECT_EQ(mark_of_tcp(kAck), reply_mark(kMask));
  EXPECT_FALSE(flow_of(IPPROTO_TCP));
}

TEST_F(Flows, TheTimeOfAFlowIsKeptToASecond) {
  put_flow(IPPROTO_UDP, 2 * EC_FLOW_REFRESH_NS);
  const std::uint64_t before = monotonic_ns();
  mark_of_udp();
  ASSERT_TRUE(flow_of(IPPROTO_UDP));
  const std::uint64_t refreshed = flow_of(IPPROTO_UDP)->last_seen_ns;
  EXPECT_GE(refreshed, before);
  mark_of_udp();
  if (monotonic_ns() - refreshed < EC_FLOW_REFRESH_NS) {
    EXPECT_EQ(flow_of(IPPROTO_UDP)->last_seen_ns, refreshed) << "it is written with every packet";
  }
}

// --- gateways ----------------------------------------------------------------------------------------------------

struct GatewayCase {
  const char* claim;
  std::uint64_t seen_ms_ago;
  std::uint64_t probe_ms_ago;
  std::uint32_t unanswered;
  Action action;
  bool probes;
};

std::ostream& operator<<(std::ostream& out, const GatewayCase& c) { return out << c.claim; }

class Gateway : public ClassifyTest, public ::testing::WithParamInterface<GatewayCase> {};

TEST_P(Gateway, Claim) {
  const GatewayCase& c = GetParam();
  constexpr std::uint64_t kMs = 1'000'000;
  const std::uint64_t now = monotonic_ns();
  node_.put("gateways", ec(kGateway),
            ec_gateway{.last_seen_ns = now - c.seen_ms_ago * kMs,
                       .last_probe_ns = now - c.probe_ms_ago * kMs,
                       .unanswered = c.unanswered,
                       .pad = 0});
  const Bytes packet = pod_sends(kOutside).udp(1, 2).payload(1300).bytes();
  const Outcome run = node_.run(Program::kClassify, packet, node_.ifindex("pod0"), kOtherBits);

  EXPECT_EQ(run.action, c.action);
  if (c.action == Action::kRedirect) {
    EXPECT_EQ(run.mark, kOtherBits | mark_of(kTunnelClass));
    EXPECT_EQ(run.data.size(), packet.size()) << "the probe, not the packet, is trimmed";
  }
  const auto gateway = node_.find<ec_gateway>("gateways", ec(kGateway));
  ASSERT_TRUE(gateway);
  EXPECT_EQ(gateway->unanswered, c.unanswered + (c.probes ? 1 : 0));
  EXPECT_EQ(gateway->last_probe_ns >= now, c.probes);

  std::vector<Count> counts = {
      {kTunnelClass, c.action == Action::kDrop ? EC_DROP_GATEWAY_UNREACHABLE : EC_STEERED_TUNNEL, 1, packet.size()}};
  if (c.probes) counts.push_back({kTunnelClass, EC_PROBE_SENT, 1, packet.size()});
  node_.expect_counts(counts);

  if (!c.probes) {
    EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "a probe is on the wire";
    return;
  }
  const auto probe = node_.next_tunneled();
  ASSERT_TRUE(probe) << "no probe is on the wire";
  EXPECT_EQ(probe->vni, EC_VNI_PROBE);
  EXPECT_EQ(probe->src, kUnderlay);
  EXPECT_EQ(probe->dst, kGateway);
  EXPECT_EQ(probe->inner.size(), 60U) << "a probe is trimmed";
}

INSTANTIATE_TEST_SUITE_P(
    Probes, Gateway,
    ::testing::Values(GatewayCase{"a gateway seen lately is not probed", 5, 5000, 0, Action::kRedirect, false},
                      GatewayCase{"a gateway seen long ago is probed", 5000, 5000, 0, Action::kRedirect, true},
                      GatewayCase{"one probe is under way at a time", 5000, 5, 1, Action::kRedirect, false},
                      GatewayCase{"the probe before the last leaves the gateway reachable", 5000, 5000,
                                  EC_PROBES_UNANSWERED - 2, Action::kRedirect, true},
                      GatewayCase{"the packet that sends the last probe still goes", 5000, 5000,
                                  EC_PROBES_UNANSWERED - 1, Action::kRedirect, true},
                      GatewayCase{"after so many unanswered probes packets are dropped", 5000, 5, EC_PROBES_UNANSWERED,
                                  Action::kDrop, false},
                      GatewayCase{"an unreachable gateway is probed on", 5000, 5000, EC_PROBES_UNANSWERED,
                                  Action::kDrop, true},
                      GatewayCase{"a gateway that answers again is reachable", 5, 400, 0, Action::kRedirect, false}),
    claim_as_name<GatewayCase>);

TEST_F(ClassifyTest, AGatewayThatWasNeverSeenGetsTheFirstPacketAndAProbe) {
  node_.put("gateways", ec(kGateway), ec_gateway{});
  EXPECT_EQ(from_pod(pod_sends(kOutside).udp(1, 2)).action, Action::kRedirect);
  EXPECT_EQ(node_.find<ec_gateway>("gateways", ec(kGateway))->unanswered, 1U);
}

TEST_F(ClassifyTest, AGatewayThatDiesIsUnreachableAfterItsProbes) {
  node_.put("gateways", ec(kGateway), ec_gateway{});
  const Packet packet = pod_sends(kOutside).udp(1, 2);
  for (int probe = 0; probe < EC_PROBES_UNANSWERED; ++probe) {
    EXPECT_EQ(from_pod(packet).action, Action::kRedirect);
    node_.change<ec_gateway>("gateways", ec(kGateway),
                             [](ec_gateway& gateway) { gateway.last_probe_ns -= EC_PROBE_INTERVAL_NS; });
  }
  EXPECT_EQ(from_pod(packet).action, Action::kDrop);
  EXPECT_EQ(node_.far("uplink").receive_all().size(), EC_PROBES_UNANSWERED + 1U) << "so many probes are on the wire";
}

TEST_F(ClassifyTest, AGatewayWithoutARecordIsUnreachable) {
  node_.erase("gateways", ec(kGateway));
  const Packet packet = pod_sends(kOutside).udp(1, 2);
  EXPECT_EQ(from_pod(packet).action, Action::kDrop);
  node_.expect_counts({{kTunnelClass, EC_DROP_GATEWAY_UNREACHABLE, 1, packet.bytes().size()}});
}

// --- counters and real packets -----------------------------------------------------------------------------------

TEST_F(ClassifyTest, CountersAddUpPacketsAndBytesOfEachClass) {
  const std::size_t headers = pod_sends(kOutside).udp(1, 2).bytes().size();
  from_pod(pod_sends(kOutside).udp(1, 2).payload(100));
  from_pod(pod_sends(kOutside).udp(1, 2).payload(1000));
  from_pod(pod_sends(kRemotePod).udp(1, 2));
  node_.gateway_in(node_.classify(local_pod_sends(kOutside).udp(1, 2).payload(7), "pod1"));
  node_.expect_counts({{kTunnelClass, EC_STEERED_TUNNEL, 2, 2 * headers + 1100},
                       {kTunnelClass, EC_BYPASSED, 1, headers},
                       {kLocalClass, EC_STEERED_LOCAL, 1, headers + 7}});
}

TEST_F(ClassifyTest, ASteeredPacketIsOnTheWireInTheTunnelOfItsClass) {
  const Packet packet = pod_sends(kOutside).udp(1, 2).payload(1200);
  node_.far("pod0").send(packet.bytes());
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->vni, kTunnelVni);
  EXPECT_EQ(tunneled->src, kUnderlay);
  EXPECT_EQ(tunneled->dst, kGateway);
  EXPECT_EQ(tunneled->checksum, 0U);
  EXPECT_EQ(tunneled->inner, in_tunnel(packet, kUnderlay, kGateway).bytes());
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it is on the wire twice";
}

TEST_F(ClassifyTest, TheProbeIsACopyAndThePacketFollowsWhole) {
  node_.put("gateways", ec(kGateway), ec_gateway{});
  const Packet packet = pod_sends(kOutside).udp(1, 2).payload(1200);
  node_.far("pod0").send(packet.bytes());
  const Bytes inner = in_tunnel(packet, kUnderlay, kGateway).bytes();
  const auto probe = node_.next_tunneled();
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(probe && tunneled) << "the probe or the packet is not on the wire";
  EXPECT_EQ(probe->vni, EC_VNI_PROBE);
  EXPECT_EQ(probe->inner, Bytes(inner.begin(), inner.begin() + 60));
  EXPECT_EQ(tunneled->vni, kTunnelVni);
  EXPECT_EQ(tunneled->inner, inner);
}

TEST_F(ClassifyTest, APacketOfALocalClassLeavesWithTheEgressIpOfItsClass) {
  for (const Packet& packet :
       {local_pod_sends(kOutside).udp(1, 2).payload(50), local_pod_sends(kOutside).tcp(1, 2, kSyn).payload(1400),
        local_pod_sends(kOutside).icmp(kEcho).payload(56)}) {
    node_.far("pod1").send(packet.bytes());
    const auto left = node_.next_outside();
    ASSERT_TRUE(left) << "nothing has left" << packet;
    expect_translated(*left, packet, kEgressIp);
  }
  EXPECT_EQ(node_.counted(EC_STEERED_LOCAL), 3U);
}

TEST_F(ClassifyTest, TheMarkOfTheGatewaysNamespaceStaysThere) {
  node_.far("pod1").send(local_pod_sends(kOutside).udp(1, 2).bytes(), 0xffffffff);
  EXPECT_TRUE(node_.next_outside());
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it went by the mark's route";
}

TEST_F(ClassifyTest, ACutIpHeaderIsNotIp) {  // a real one: test runs take no such packets
  const Packet v4 = pod_sends(kOutside).udp(1, 2);
  const Packet v6 = pod_sends(kOutside6).udp(1, 2);
  std::uint64_t bytes = 0;
  for (const Packet& packet : {Packet(v4).cut(14), Packet(v4).cut(14 + 19), Packet(v6).cut(14 + 39)}) {
    node_.far("pod0").send(packet.bytes());
    bytes += packet.bytes().size();
  }
  node_.expect_counts({{kTunnelClass, EC_DROP_NOT_IP, 3, bytes}});
}

TEST_F(ClassifyTest, AVlanTagThatTheKernelHasTakenOffIsSeen) {
  node_.far("pod0").send(pod_sends(kOutside).vlan(7).udp(1, 2).bytes());
  node_.expect_counts({{kTunnelClass, EC_DROP_NOT_IP, 1, 42}});
}

}  // namespace
}  // namespace egressclass
