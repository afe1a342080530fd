// SPDX-License-Identifier: Apache-2.0
#include "util/json.h"

#include <gtest/gtest.h>

#include <string>

namespace egressclass {
namespace {

TEST(Json, KeepsOrderAndNumbers) {
  for (const char* text : {R"({"z":1,"a":{"y":[],"b":{}},"m":[null,true,"x"]})", "18446744073709551615",
                           "-9223372036854775808", "[0.5,1.0]", "\"\\u0000\"", "{}", "[[],[[1]]]"}) {
    const auto json = parse_json(text);
    ASSERT_TRUE(json) << text;
    EXPECT_EQ(dump_json(*json), text);
  }
}

TEST(Json, FindsTheTextOfAMember) {
  struct Case {
    const char* object;
    const char* text;
  };
  for (const auto& [object, text] :
       std::vector<Case>{{R"({"a":1.10})", "1.10"},
                         {R"({"b":{"a":1},"a" : [ 1e2 , {"a":2}] ,"c":3})", R"([ 1e2 , {"a":2}])"},
                         {R"({"a":1,"b":"a","a":2})", "2"},
                         {R"({"x":"}\\\",\"a\":5","a":"\\"})", R"("\\")"},
                         {R"({"a":null})", "null"},
                         {R"({"b":["a",{"a":1}],"c":"a"})", ""},
                         {R"({"a":1,"\u0061":2})", ""},
                         {R"([{"a":1}])", ""},
                         {R"(["a"])", ""},
                         {R"("a")", ""},
                         {"{}", ""}}) {
    ASSERT_TRUE(parse_json(object)) << object;
    EXPECT_EQ(member_text(object, "a"), text) << object;
  }
  const std::string with_tail = std::string(R"({"a":1})") + '\0' + R"({"a":2})";  // the parser stops at a NUL
  EXPECT_EQ(member_text(with_tail, "a"), "1");
}

TEST(Json, NamesLineAndColumnOfAnError) {
  struct Case {
    const char* text;
    const char* place;
    const char* reason;
  };
  for (const auto& [text, place, reason] : std::vector<Case>{{"", "line 1, column 0", "unexpected end of input"},
                                                             {"{\n  \"a\": }\n", "line 2, column 8", "unexpected '}'"},
                                                             {"{\"a\":1} x", "line 1, column 9", "invalid literal"},
                                                             {"[1,]", "line 1, column 4", "unexpected ']'"},
                                                             {"[1e999]", "line 1, column 6", "number overflow"},
                                                             {"\"\xff\"", "line 1, column 2", "ill-formed UTF-8"}}) {
    const auto json = parse_json(text);
    ASSERT_FALSE(json) << text;
    EXPECT_EQ(json.error().msg, place) << text;
    EXPECT_NE(json.error().details.find(reason), std::string::npos) << json.error().details;
    EXPECT_EQ(json.error().details.find('\xff'), std::string::npos);
  }
}

TEST(Json, ShortensTheErrorOfAHugeToken) {
  const auto json = parse_json('"' + std::string(1U << 20U, 'x'));
  ASSERT_FALSE(json);
  EXPECT_LE(json.error().details.size(), 200U);
}

TEST(Json, BoundsTheNesting) {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth)));
  for (const std::string& text : {nested(kMaxJsonDepth + 1), nested(1U << 20U), std::string(1U << 20U, '[')}) {
    const auto json = parse_json(text);
    ASSERT_FALSE(json);
    EXPECT_NE(json.error().details.find("64 levels"), std::string::npos);
  }
}

TEST(Json, NamesThePathOfDuplicateKeys) {
  std::vector<std::string> duplicates;
  const auto json =
      parse_json(R"({"a":1,"a":2,"list":[{},{"b":[[],{"c":1,"c":{"d":[0]}}],"e":0}],"list":3})", &duplicates);
  ASSERT_TRUE(json);
  EXPECT_EQ(duplicates, (std::vector<std::string>{"a", "list[1].b[1].c", "list"}));
}

TEST(Json, TakesTheLastOfDuplicateKeys) {
  EXPECT_EQ(dump_json(*parse_json(R"({"a":{"x":1},"b":2,"a":{"y":[3]}})")), R"({"a":{"y":[3]},"b":2})");
}

TEST(Json, ReadsALargeObjectInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 300000; ++i) text += (i == 0 ? "\"k" : ",\"k") + std::to_string(i) + "\":0";
  const auto json = parse_json(text + "}");  // quadratic time would be minutes: the runner's limit
  ASSERT_TRUE(json);
  EXPECT_EQ(json->size(), 300000U);
}

TEST(Json, DumpsBytesThatAreNoUtf8) { EXPECT_EQ(dump_json(Json("a\xff")), "\"a\xef\xbf\xbd\""); }

TEST(Json, FindsMembersOfAnything) {
  const Json object = {{"a", 1}, {"none", nullptr}};
  EXPECT_EQ(*find_member(object, "a"), 1);
  EXPECT_EQ(find_member(object, "none"), nullptr);
  EXPECT_EQ(find_member(object, "b"), nullptr);
  EXPECT_EQ(find_member(Json::array({1}), "a"), nullptr);
  EXPECT_EQ(find_member(Json(), "a"), nullptr);
}

}  // namespace
}  // namespace egressclass
