// SPDX-License-Identifier: Apache-2.0
#include "core/target.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <string>
#include <vector>

namespace egressclass {
namespace {

TEST(Target, IsReadAsWritten) {
  for (const char* text :
       {"192.0.2.1", "2001:db8::1", "192.0.2.1/icmp", "2001:db8::1/icmp", "192.0.2.1/tcp", "192.0.2.1:443/tcp",
        "[2001:db8::1]:53/udp", "192.0.2.1:65535/sctp", "2001:db8::1/esp", "192.0.2.1/gre", "192.0.2.1/ah"}) {
    std::string why;
    const auto target = Target::parse(text, &why);
    ASSERT_TRUE(target) << text << ": " << why;
    EXPECT_EQ(target->str(), text);
  }
}

TEST(Target, APortAloneIsTcps) {
  std::string why;
  EXPECT_EQ(Target::parse("192.0.2.1:443", &why)->str(), "192.0.2.1:443/tcp");
  EXPECT_EQ(Target::parse("[2001:db8::1]:443", &why)->str(), "[2001:db8::1]:443/tcp");
  EXPECT_EQ(Target::parse("[2001:db8::1]", &why)->str(), "2001:db8::1");
}

TEST(Target, IcmpIsThatOfTheFamily) {
  std::string why;
  EXPECT_EQ(Target::parse("192.0.2.1/icmp", &why)->protocol, IPPROTO_ICMP);
  EXPECT_EQ(Target::parse("2001:db8::1/icmp", &why)->protocol, IPPROTO_ICMPV6);
}

TEST(Target, HasPortsIfItsProtocolIsKnownToHaveThem) {
  std::string why;
  for (const char* text : {"192.0.2.1:443", "192.0.2.1/tcp", "2001:db8::1/udp", "192.0.2.1/sctp"})
    EXPECT_TRUE(Target::parse(text, &why)->has_ports()) << text;
  for (const char* text : {"192.0.2.1", "192.0.2.1/icmp", "2001:db8::1/icmp", "192.0.2.1/gre", "192.0.2.1/esp"})
    EXPECT_FALSE(Target::parse(text, &why)->has_ports()) << text;
}

TEST(Target, AnythingElseIsRefusedWithTheReason) {
  struct Case {
    const char* text;
    const char* reason;
  };
  for (const auto& [text, reason] : std::vector<Case>{
           {"", "ADDR"},
           {"example.com", "ADDR"},
           {"10.0.0.0/8", "unknown protocol"},
           {"192.0.2.1:", "port"},
           {"192.0.2.1:0", "port"},
           {"192.0.2.1:65536", "port"},
           {"192.0.2.1:1-5", "one port"},
           {"192.0.2.1: 80", "port"},
           {"192.0.2.1/", "unknown protocol"},
           {"192.0.2.1/TCP", "unknown protocol"},
           {"192.0.2.1/any", "unknown protocol"},
           {"192.0.2.1/tcp/80", "behind the address"},
           {"192.0.2.1:80/icmp", "no ports"},
           {"2001:db8::1:443/tcp ", "unknown protocol"},
           {"[192.0.2.1", "ADDR"},
           {"[2001:db8::1]x", "ADDR"},
       }) {
    std::string why;
    EXPECT_FALSE(Target::parse(text, &why)) << text;
    EXPECT_NE(why.find(reason), std::string::npos) << text << ": " << why;
  }
}

}  // namespace
}  // namespace egressclass
