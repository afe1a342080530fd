// SPDX-License-Identifier: Apache-2.0
#include "core/ports.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

namespace egressclass {
namespace {

std::optional<PortRule> rule(std::string_view text) {
  std::string why;
  return PortRule::parse(text, &why);
}

std::string refusal(std::string_view text) {
  std::string why;
  EXPECT_FALSE(PortRule::parse(text, &why)) << text;
  return why;
}

TEST(PortRule, KnowsTheProtocols) {
  const std::vector<std::pair<const char*, std::uint8_t>> protocols = {
      {"icmp", 1}, {"tcp", 6}, {"udp", 17}, {"sctp", 132}, {"gre", 47}, {"esp", 50}, {"ah", 51}};
  for (const auto& [name, number] : protocols) {
    EXPECT_EQ(rule(name), (PortRule{number, 0, 65535})) << name;
    EXPECT_EQ((PortRule{number, 0, 65535}).str(), name);
  }
}

TEST(PortRule, ReadsPorts) {
  EXPECT_EQ(rule("tcp/443"), (PortRule{IPPROTO_TCP, 443, 443}));
  EXPECT_EQ(rule("udp/5000-5100"), (PortRule{IPPROTO_UDP, 5000, 5100}));
  EXPECT_EQ(rule("sctp/1-65535"), (PortRule{IPPROTO_SCTP, 1, 65535}));
  EXPECT_EQ(rule("tcp/65535"), (PortRule{IPPROTO_TCP, 65535, 65535}));
  EXPECT_EQ(rule("tcp/10"), (PortRule{IPPROTO_TCP, 10, 10}));
  EXPECT_EQ(rule("tcp/443-443"), rule("tcp/443"));
}

TEST(PortRule, WritesWhatItReads) {
  for (const char* text : {"icmp", "tcp", "tcp/1", "tcp/443", "udp/5000-5100", "sctp/1-65535", "gre", "esp", "ah"})
    EXPECT_EQ(rule(text).value_or(PortRule{}).str(), text);
  EXPECT_EQ(rule("tcp/443-443").value_or(PortRule{}).str(), "tcp/443");
  EXPECT_EQ((PortRule{89, 0, 65535}).str(), "89");
  EXPECT_EQ((PortRule{IPPROTO_TCP, 0, 7}).str(), "tcp/0-7");
}

TEST(PortRule, RefusesUnknownProtocols) {
  for (const char* text :
       {"", " tcp", "tcp ", "TCP", "Tcp/443", "icmpv6", "icmp6", "6", "http", "/443", "any", "any/80", "*"})
    EXPECT_EQ(refusal(text), "unknown protocol: there are icmp, tcp, udp, sctp, gre, esp and ah, and \"any\"") << text;
}

TEST(PortRule, RefusesPortsOfProtocolsThatHaveNone) {
  for (const std::string name : {"icmp", "gre", "esp", "ah"})
    for (const char* ports : {"/8", "/", "/1-2"}) EXPECT_EQ(refusal(name + ports), name + " has no ports");
}

TEST(PortRule, RefusesWhatIsNoPort) {
  const std::vector<std::string> texts = {"tcp/",      "tcp/0",          "tcp/65536",
                                          "tcp/-1",    "tcp/+1",         "tcp/0443",
                                          "tcp/ 443",  "tcp/443 ",       "tcp/443/",
                                          "tcp/http",  "tcp/1-",         "tcp/-",
                                          "tcp/0-10",  "tcp/1-65536",    "tcp/1 - 2",
                                          "tcp/1-2-3", "tcp/1,2",        "tcp/0x1",
                                          "tcp/1-+2",  "tcp/01-2",       "tcp/1-02",
                                          "tcp/1:2",   "tcp/1.5",        "tcp/*",
                                          "tcp/70000", "tcp/4294967297", std::string("tcp/1\0", 6)};
  for (const std::string& text : texts)
    EXPECT_EQ(refusal(text), "the port must be a number from 1 to 65535, or a range as 5000-5100") << text;
}

TEST(PortRule, RefusesRangesThatEndBeforeTheyBegin) {
  EXPECT_EQ(refusal("udp/5100-5000"), "the range ends before it begins");
  EXPECT_EQ(refusal("udp/2-1"), "the range ends before it begins");
}

using Prefixes = std::vector<std::pair<std::uint16_t, unsigned>>;

TEST(PortPrefixes, AreTheKnownOnes) {
  EXPECT_EQ(port_prefixes(0, 65535), (Prefixes{{0, 0}}));
  EXPECT_EQ(port_prefixes(443, 443), (Prefixes{{443, 16}}));
  EXPECT_EQ(port_prefixes(65535, 65535), (Prefixes{{65535, 16}}));
  EXPECT_EQ(port_prefixes(0, 0), (Prefixes{{0, 16}}));
  EXPECT_EQ(port_prefixes(0, 32767), (Prefixes{{0, 1}}));
  EXPECT_EQ(port_prefixes(1024, 2047), (Prefixes{{1024, 6}}));
  EXPECT_EQ(port_prefixes(1024, 65535), (Prefixes{{1024, 6}, {2048, 5}, {4096, 4}, {8192, 3}, {16384, 2}, {32768, 1}}));
  EXPECT_EQ(port_prefixes(5000, 5100),
            (Prefixes{{5000, 13}, {5008, 12}, {5024, 11}, {5056, 11}, {5088, 13}, {5096, 14}, {5100, 16}}));
  EXPECT_EQ(port_prefixes(1, 65534).size(), 30U);  // the most that there can be
  EXPECT_TRUE(port_prefixes(2, 1).empty());
}

TEST(PortPrefixes, CoverTheRangeAndNothingElseAndCannotBeJoined) {
  const std::vector<std::uint32_t> edges = {0,    1,    2,     3,     7,     8,     1023, 1024,
                                            5000, 5100, 32767, 32768, 65533, 65534, 65535};
  for (const std::uint32_t first : edges)
    for (const std::uint32_t last : edges) {
      if (first > last) continue;
      std::uint32_t next = first;
      Prefixes seen;
      for (const auto& [port, length] :
           port_prefixes(static_cast<std::uint16_t>(first), static_cast<std::uint16_t>(last))) {
        ASSERT_LE(length, 16U);
        const std::uint32_t size = 1U << (16 - length);
        EXPECT_EQ(port, next) << first << '-' << last;
        EXPECT_EQ(port % size, 0U) << first << '-' << last;
        const bool two_halves =
            !seen.empty() && seen.back() == std::pair(static_cast<std::uint16_t>(port - size), length);
        EXPECT_FALSE(two_halves && seen.back().first % (2 * size) == 0) << first << '-' << last;
        seen.emplace_back(port, length);
        next += size;
      }
      EXPECT_EQ(next, last + 1) << first << '-' << last;
    }
}

}  // namespace
}  // namespace egressclass
