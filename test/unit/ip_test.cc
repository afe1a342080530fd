// SPDX-License-Identifier: Apache-2.0
#include "core/ip.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

namespace egressclass {
namespace {

Prefix prefix(const char* text) {
  std::string why;
  const auto parsed = Prefix::parse(text, true, &why);
  EXPECT_TRUE(parsed) << text << ": " << why;
  return parsed.value_or(Prefix{});
}

Ip ip(const char* text) { return Ip::parse(text).value_or(Ip{}); }

TEST(Ip, WritesWhatItReads) {
  for (const char* text : {"192.0.2.1", "0.0.0.0", "255.255.255.255", "::", "2001:db8::7", "fe80::1"}) {
    const auto parsed = Ip::parse(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(parsed->str(), text);
  }
}

TEST(Ip, RefusesWhatIsNoAddress) {
  const std::vector<std::string> texts = {"",
                                          " 192.0.2.1",
                                          "192.0.2.1 ",
                                          "192.0.2",
                                          "192.0.2.256",
                                          "192.0.02.1",
                                          "192.0.2.1.",
                                          "0x7f.0.0.1",
                                          "fe80::1%eth0",
                                          "2001:db8::7::",
                                          "[::1]",
                                          "192.0.2.1/32",
                                          "localhost",
                                          std::string("192.0.2.1\0x", 11)};
  for (const std::string& text : texts) EXPECT_FALSE(Ip::parse(text)) << text;
}

TEST(Ip, RefusesTheSecondSpellingsOfIpv4) {
  for (const char* text : {"::ffff:192.0.2.1", "::ffff:c000:201", "0:0:0:0:0:ffff:192.0.2.1"})
    EXPECT_FALSE(Ip::parse(text)) << text;
}

TEST(Ip, KeepsIpv4InTheMappedForm) {
  const Ip parsed = ip("192.0.2.1");
  EXPECT_TRUE(parsed.is_v4());
  EXPECT_EQ(parsed.v4(), htonl(0xc0000201));
  EXPECT_EQ(Ip::from_v4(htonl(0xc0000201)), parsed);
  EXPECT_EQ(parsed.bytes[10], 0xff);
  EXPECT_EQ(parsed.bytes[12], 192);
  EXPECT_FALSE(ip("2001:db8::7").is_v4());
}

TEST(Ip, KnowsLinkLocalAddresses) {
  for (const char* text : {"169.254.0.0", "169.254.255.255", "fe80::", "fe80::1", "febf:ffff::1"})
    EXPECT_TRUE(ip(text).is_link_local()) << text;
  for (const char* text : {"169.253.255.255", "169.255.0.0", "168.254.0.0", "0.0.169.254", "fe7f::1", "fec0::1",
                           "ff02::1", "::", "2001:db8::fe80"})
    EXPECT_FALSE(ip(text).is_link_local()) << text;
}

TEST(Prefix, WritesWhatItReads) {
  for (const char* text :
       {"0.0.0.0/0", "10.0.0.0/8", "192.0.2.128/25", "192.0.2.1/32", "::/0", "2001:db8::/33", "2001:db8::7/128"})
    EXPECT_EQ(prefix(text).str(), text);
}

TEST(Prefix, CountsTheLengthOfIpv4In128Bits) {
  EXPECT_EQ(prefix("10.0.0.0/8").length, 104U);
  EXPECT_EQ(prefix("2001:db8::/32").length, 32U);
}

TEST(Prefix, ReadsALoneAddressOnlyWhereAllowed) {
  EXPECT_EQ(prefix("192.0.2.1"), Prefix::host(ip("192.0.2.1")));
  std::string why;
  EXPECT_FALSE(Prefix::parse("192.0.2.1", false, &why));
  EXPECT_NE(why.find("write 192.0.2.1/32"), std::string::npos) << why;
  EXPECT_FALSE(Prefix::parse("2001:db8::7", false, &why));
  EXPECT_NE(why.find("write 2001:db8::7/128"), std::string::npos) << why;
}

TEST(Prefix, SaysWhyATextIsNoPrefix) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"10.0.0.1/8", "host bits are set: write 10.0.0.0/8"},
      {"192.0.2.129/25", "write 192.0.2.128/25"},
      {"2001:db8::1/32", "write 2001:db8::/32"},
      {"10.0.0.0/33", "from 0 to 32"},
      {"::/129", "from 0 to 128"},
      {"10.0.0.0/", "from 0 to 32"},
      {"10.0.0.0/08", "from 0 to 32"},
      {"10.0.0.0/+8", "from 0 to 32"},
      {"10.0.0.0/-1", "from 0 to 32"},
      {"10.0.0.0/8 ", "from 0 to 32"},
      {"10.0.0.0/8/8", "from 0 to 32"},
      {"10.0.0.0/99999999999", "from 0 to 32"},
      {" 10.0.0.0/8", "no IP prefix"},
      {"::ffff:10.0.0.0/104", "no IP prefix"},
      {"/8", "no IP prefix"},
      {"", "no IP prefix"},
  };
  for (const auto& [text, reason] : cases) {
    std::string why;
    EXPECT_FALSE(Prefix::parse(text, true, &why)) << text;
    EXPECT_NE(why.find(reason), std::string::npos) << text << ": " << why;
  }
}

TEST(Prefix, ContainsWhatIsInside) {
  struct Case {
    const char* outer;
    const char* inner;
    bool contained;
  };
  for (const auto& [outer, inner, contained] : std::vector<Case>{
           {"10.0.0.0/8", "10.255.0.1", true},
           {"10.0.0.0/8", "11.0.0.0", false},
           {"192.0.2.128/25", "192.0.2.127", false},
           {"10.0.0.0/8", "10.1.0.0/16", true},
           {"10.1.0.0/16", "10.0.0.0/8", false},
           {"10.0.0.0/8", "10.0.0.0/8", true},
           {"0.0.0.0/0", "203.0.113.7", true},
           {"2001:db8::/32", "2001:db8:1::7", true},
           {"2001:db8::/32", "2001:db9::", false},
           {"::/0", "2001:db8::7", true},
       })
    EXPECT_EQ(prefix(outer).contains(prefix(inner)), contained) << outer << " and " << inner;
  EXPECT_TRUE(prefix("10.0.0.0/8").contains(ip("10.0.0.1")));
}

TEST(Prefix, KeepsTheFamiliesApart) {
  EXPECT_FALSE(prefix("::/0").contains(ip("192.0.2.1")));
  EXPECT_FALSE(prefix("::/0").contains(prefix("0.0.0.0/0")));
  EXPECT_FALSE(prefix("0.0.0.0/0").contains(ip("2001:db8::7")));
}

}  // namespace
}  // namespace egressclass
