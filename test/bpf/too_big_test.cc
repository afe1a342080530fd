// SPDX-License-Identifier: Apache-2.0
// classify: what does not fit into the tunnel, and what the pod is told of it.
#include <netinet/in.h>

#include <algorithm>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::size_t kEthernet = 14;
constexpr std::size_t kMtu = 1450;  // of egress0
constexpr std::size_t kQuoted = 64;

std::string by_gateway(const char* address) {
  return R"("destinations": ["0.0.0.0/0", "::/0"], "egressIPs": ["203.0.113.21", "2001:db8:113::21"],
            "gateways": [{"address": ")" +
         std::string(address) + R"("}])";
}

// UDP packets of so many bytes, without Ethernet.
Packet v4_of(std::size_t size) { return pod_sends(kOutside).udp(40000, 443).payload(size - 20 - 8); }
Packet v6_of(std::size_t size) { return pod_sends(kOutside6).udp(40000, 443).payload(size - 40 - 8); }

std::size_t word(const Bytes& bytes, std::size_t at) { return bytes.at(at) * 256U + bytes.at(at + 1); }

/// Of 16-bit words, in one's complement: 0xffff when the checksum among them is right.
std::size_t sum(const Bytes& bytes, std::size_t from, std::size_t to, std::size_t start = 0) {
  std::size_t sum = start;
  for (std::size_t at = from; at < to; at += 2) sum += word(bytes, at);
  while (sum > 0xffff) sum = (sum & 0xffffU) + (sum >> 16U);
  return sum;
}

std::string address(const Bytes& bytes, std::size_t at, bool v4) {
  Ip ip = Ip::parse(v4 ? "0.0.0.0" : "::").value();
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), v4 ? 4 : 16, ip.bytes.begin() + (v4 ? 12 : 0));
  return ip.str();
}

Bytes slice(const Bytes& bytes, std::size_t from, std::size_t size) {
  const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(from);
  return {begin, begin + static_cast<std::ptrdiff_t>(size)};
}

void expect_goes_back(const Bytes& answer, const Packet& sent) {
  const Bytes packet = sent.bytes();
  EXPECT_EQ(slice(answer, 0, 6), slice(packet, 6, 6)) << "it is not for the pod";
  EXPECT_EQ(slice(answer, 6, 6), slice(packet, 0, 6)) << "it does not come from whom the pod knows";
  EXPECT_EQ(slice(answer, 12, 2), slice(packet, 12, 2));
}

/// RFC 792, RFC 1191. `options`: bytes of those in the header of what was sent.
void expect_frag_needed(const Bytes& answer, const Packet& sent, std::size_t mtu, const char* from,
                        std::size_t options = 0) {
  constexpr std::size_t kIcmp = kEthernet + 20;
  constexpr std::size_t kAbout = kIcmp + 8;
  ASSERT_EQ(answer.size(), kAbout + 20 + kQuoted);
  expect_goes_back(answer, sent);
  EXPECT_EQ(answer[kEthernet], 0x45);
  EXPECT_EQ(answer[kEthernet + 1], 0xc0) << "the TOS is not the kernel's own";
  EXPECT_EQ(word(answer, kEthernet + 2), answer.size() - kEthernet);
  EXPECT_EQ(word(answer, kEthernet + 6), 0U) << "it is a fragment";
  EXPECT_EQ(answer[kEthernet + 8], 64);
  EXPECT_EQ(answer[kEthernet + 9], IPPROTO_ICMP);
  EXPECT_EQ(sum(answer, kEthernet, kIcmp), 0xffffU) << "the checksum of the IP header is wrong";
  EXPECT_EQ(address(answer, kEthernet + 12, true), from);
  EXPECT_EQ(address(answer, kEthernet + 16, true), kPod);
  EXPECT_EQ(word(answer, kIcmp), 0x0304U) << "type, code";
  EXPECT_EQ(word(answer, kIcmp + 4), 0U);
  EXPECT_EQ(word(answer, kIcmp + 6), mtu);
  EXPECT_EQ(sum(answer, kIcmp, answer.size()), 0xffffU) << "the checksum of ICMP is wrong";

  const Bytes packet = sent.bytes();
  EXPECT_EQ(answer[kAbout], 0x45) << "options are not quoted";
  EXPECT_EQ(slice(answer, kAbout + 1, 9), slice(packet, kEthernet + 1, 9));
  EXPECT_EQ(sum(answer, kAbout, kAbout + 20), 0xffffU) << "the checksum of the quoted IP header is wrong";
  EXPECT_EQ(slice(answer, kAbout + 12, 8), slice(packet, kEthernet + 12, 8));
  EXPECT_EQ(hex_dump(slice(answer, kAbout + 20, kQuoted)), hex_dump(slice(packet, kEthernet + 20 + options, kQuoted)));
}

/// RFC 4443.
void expect_packet_too_big(const Bytes& answer, const Packet& sent, std::size_t mtu, const char* from) {
  constexpr std::size_t kIcmp = kEthernet + 40;
  constexpr std::size_t kAbout = kIcmp + 8;
  const std::size_t icmp_bytes = 8 + 40 + kQuoted;
  ASSERT_EQ(answer.size(), kAbout + 40 + kQuoted);
  expect_goes_back(answer, sent);
  EXPECT_EQ(answer[kEthernet] >> 4U, 6);
  EXPECT_EQ(word(answer, kEthernet + 4), icmp_bytes);
  EXPECT_EQ(answer[kEthernet + 6], IPPROTO_ICMPV6);
  EXPECT_EQ(answer[kEthernet + 7], 64);
  EXPECT_EQ(address(answer, kEthernet + 8, false), from);
  EXPECT_EQ(address(answer, kEthernet + 24, false), kPod6);
  EXPECT_EQ(word(answer, kIcmp), 0x0200U) << "type, code";
  EXPECT_EQ(word(answer, kIcmp + 4), 0U);
  EXPECT_EQ(word(answer, kIcmp + 6), mtu);
  EXPECT_EQ(sum(answer, kEthernet + 8, answer.size(), icmp_bytes + IPPROTO_ICMPV6), 0xffffU)
      << "the checksum of ICMPv6 is wrong";
  EXPECT_EQ(hex_dump(slice(answer, kAbout, 40 + kQuoted)), hex_dump(slice(sent.bytes(), kEthernet, 40 + kQuoted)));
}

class TooBigTest : public DatapathTest {
 protected:
  TooBigTest() : id_(node_.configure_class(by_gateway(kGateway))) {}

  void expect_steered(const Packet& packet) {
    EXPECT_EQ(node_.gateway_of(node_.classify(packet)), kGateway);
    node_.expect_counts({{id_, EC_STEERED_TUNNEL, 1, packet.bytes().size()}});
  }

  /// The packet is for the pod's interface; it is counted as what was not sent.
  Bytes answer_to(const Packet& packet) {
    const Outcome outcome = node_.classify(packet);
    EXPECT_EQ(outcome.action, Action::kRedirect);
    node_.expect_counts({{id_, EC_TOO_BIG, 1, packet.bytes().size()}});
    return outcome.data;
  }

  std::uint32_t id_;
};

TEST_F(TooBigTest, WhatFitsIsSteered) { expect_steered(v4_of(kMtu).dont_fragment()); }

TEST_F(TooBigTest, WhatFitsIsSteeredWithIpv6) { expect_steered(v6_of(kMtu)); }

TEST_F(TooBigTest, OneByteMoreIsAnsweredWithTheMtu) {
  const Packet packet = v4_of(kMtu + 1).dont_fragment();
  expect_frag_needed(answer_to(packet), packet, kMtu, kUnderlay);
}

TEST_F(TooBigTest, OneByteMoreIsAnsweredWithTheMtuWithIpv6) {
  const Packet packet = v6_of(kMtu + 1);
  expect_packet_too_big(answer_to(packet), packet, kMtu, kUnderlay6);
}

TEST_F(TooBigTest, TcpIsAnsweredToo) {
  const Packet packet = pod_sends(kOutside).dont_fragment().tcp(40000, 443).payload(1460);
  expect_frag_needed(answer_to(packet), packet, kMtu, kUnderlay);
}

TEST_F(TooBigTest, IpOptionsAreNotQuotedButWhatIsBehindThem) {
  const Packet packet = v4_of(kMtu).ip_header_words(8).dont_fragment();
  expect_frag_needed(answer_to(packet), packet, kMtu, kUnderlay, 12);
}

TEST_F(TooBigTest, ThePortsBehindExtensionHeadersAreQuoted) {
  const Packet packet = v6_of(kMtu).extension(IPPROTO_HOPOPTS, 16).extension(IPPROTO_DSTOPTS, 24);
  expect_packet_too_big(answer_to(packet), packet, kMtu, kUnderlay6);
}

TEST_F(TooBigTest, AFragmentIsAnsweredToo) {
  const Packet packet = v6_of(kMtu).fragment(7, 0, true);
  expect_packet_too_big(answer_to(packet), packet, kMtu, kUnderlay6);
}

TEST_F(TooBigTest, ANodeWithoutAnAddressOfTheFamilyAnswersInTheNameOfTheDestination) {
  node_.change<ec_node>("node", 0U, [](ec_node& node) { node.underlay6 = {}; });
  const Packet packet = v6_of(kMtu + 1);
  expect_packet_too_big(answer_to(packet), packet, kMtu, kOutside6);
}

TEST_F(TooBigTest, TheAnswerComesToThePod) {
  for (const Packet& packet : {v4_of(1500).dont_fragment(), v6_of(1500)}) {
    node_.far("pod0").send(packet.bytes());
    const auto frame = node_.far("pod0").receive(std::chrono::seconds(1));
    ASSERT_TRUE(frame) << "nothing came to the pod";
    EXPECT_TRUE(frame->for_host) << "the pod's stack will not take it";
    if (packet.bytes()[12] == 0x08)
      expect_frag_needed(frame->bytes, packet, kMtu, kUnderlay);
    else
      expect_packet_too_big(frame->bytes, packet, kMtu, kUnderlay6);
  }
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it is on the wire, too";
}

TEST_F(TooBigTest, WhatBypassesIsNotAnswered) {
  const Packet packet = pod_sends(kRemotePod).dont_fragment().udp(1, 2).payload(1472);
  EXPECT_EQ(node_.classify(packet).action, Action::kNext);
  node_.expect_counts({{id_, EC_BYPASSED, 1, packet.bytes().size()}});
}

TEST_F(TooBigTest, WhatMayBeFragmentedIsSteeredAndCounted) {
  const Packet packet = v4_of(kMtu + 1);
  EXPECT_EQ(node_.gateway_of(node_.classify(packet)), kGateway);
  const std::uint64_t size = packet.bytes().size();
  node_.expect_counts({{id_, EC_FRAGMENTED, 1, size}, {id_, EC_STEERED_TUNNEL, 1, size}});
}

/// What is behind the header of the outer packet.
Bytes fragment_content(const Bytes& frame) { return slice(frame, kEthernet + 20, word(frame, kEthernet + 2) - 20); }

TEST_F(TooBigTest, WhatMayBeFragmentedIsCarriedInOuterFragments) {
  const Packet packet = v4_of(1500);
  node_.far("pod0").send(packet.bytes());
  const auto first = node_.far("uplink").receive(std::chrono::seconds(1));
  const auto second = node_.far("uplink").receive(std::chrono::seconds(1));
  ASSERT_TRUE(first && second) << "there are no two fragments on the wire";
  EXPECT_LE(std::max(first->bytes.size(), second->bytes.size()), kEthernet + 1500);
  Bytes content = fragment_content(first->bytes);
  const Bytes rest = fragment_content(second->bytes);
  content.insert(content.end(), rest.begin(), rest.end());
  EXPECT_EQ(hex_dump(slice(content, 8 + 8, content.size() - 16)),
            hex_dump(in_tunnel(packet, kUnderlay, kGateway).bytes()));
}

TEST_F(TooBigTest, OverIpv6ThereAreNoOuterFragmentsSoThePodIsToldInAnyCase) {
  const std::uint32_t id = node_.configure_class(by_gateway(kGateway6));
  const Packet packet = v4_of(kMtu + 1);
  const Outcome outcome = node_.classify(packet);
  EXPECT_EQ(outcome.action, Action::kRedirect);
  expect_frag_needed(outcome.data, packet, kMtu, kUnderlay);
  node_.expect_counts({{id, EC_TOO_BIG, 1, packet.bytes().size()}});
}

}  // namespace
}  // namespace egressclass
