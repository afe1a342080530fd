// SPDX-License-Identifier: Apache-2.0
#include "core/attachment.h"

#include <gtest/gtest.h>

namespace egressclass {
namespace {

Attachment an_attachment() {
  Attachment attachment;
  attachment.key = "net,abc,eth0";
  attachment.network = "net";
  attachment.container_id = "abc";
  attachment.ifname = "eth0";
  attachment.pod = Pod{"shop", "web-0", "uid-1", std::nullopt};
  attachment.class_name = "billing";
  attachment.class_id = 3;
  attachment.host_ifindex = 17;
  attachment.host_veth = "veth1";
  attachment.host_mac = {2, 0, 0, 0, 0, 1};
  attachment.pod_mac = {2, 0, 0, 0, 0, 2};
  attachment.addresses = {*Ip::parse("10.244.1.2"), *Ip::parse("fd00::2")};
  return attachment;
}

TEST(Attachment, ComesBackFromItsRecordAsItWent) {
  const Attachment before = an_attachment();
  auto after = Attachment::from_json(before.key, before.to_json());
  ASSERT_TRUE(after);
  EXPECT_EQ(after->to_json(), before.to_json());
  EXPECT_EQ(after->cookie(), before.cookie());
}

TEST(Attachment, CookiesTellAttachmentsApart) {
  Attachment other = an_attachment();
  other.key = "net,abc,eth1";
  EXPECT_NE(other.cookie(), an_attachment().cookie());
}

TEST(Attachment, ARecordOfAnotherVersionOrABrokenOneIsAnError) {
  for (const char* text : {"", "{", "[]", "{}", R"({"version":2})"})
    EXPECT_FALSE(Attachment::from_json("net,abc,eth0", text)) << text;
}

TEST(Attachment, ARecordWithNumbersThatCannotBeIsAnError) {
  for (const char* numbers :
       {R"("classID":-4,"classVNI":1,"hostIfindex":7)", R"("classID":1,"classVNI":1,"hostIfindex":4294967295)",
        R"("classID":1,"classVNI":1,"hostIfindex":4294967303)", R"("classID":1,"classVNI":1.5,"hostIfindex":7)",
        R"("classID":1,"hostIfindex":7)", R"("classID":1,"classVNI":1,"hostIfindex":"x")"})
    EXPECT_FALSE(Attachment::from_json("k", std::string(R"({"version":1,)") + numbers + "}")) << numbers;
  EXPECT_FALSE(Attachment::from_json("k", R"({"version":4294967297,"classID":1,"classVNI":1,"hostIfindex":7})"));
}

TEST(Attachment, TextsOfARecordThatMakeNoSenseAreLeftOut) {
  auto read = Attachment::from_json("k", R"({"version":1,"classID":1,"classVNI":2,"hostIfindex":7,"podMAC":7,
                                             "addresses":[1,"nonsense","10.0.0.1"]})");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->addresses.size(), 1U);
}

TEST(Mac, ParsesWhatItPrints) {
  const Mac mac = {0x02, 0xec, 0xc0, 0x00, 0x02, 0x15};
  EXPECT_EQ(mac_text(mac), "02:ec:c0:00:02:15");
  EXPECT_EQ(parse_mac("02:ec:c0:00:02:15"), mac);
  for (const char* bad : {"", "02:ec", "02:ec:c0:00:02:15:16", "02:ec:c0:00:02:1g", "nonsense"})
    EXPECT_FALSE(parse_mac(bad)) << bad;
}

}  // namespace
}  // namespace egressclass
