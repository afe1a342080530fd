// SPDX-License-Identifier: Apache-2.0
// "CNI-n" are the points of the checklist for a chained plugin.
#include "cni/protocol.h"

#include <gtest/gtest.h>

#include "cni/codes.h"
#include "cni/result.h"

namespace egressclass::cni {
namespace {

using Variables = std::map<std::string, std::string>;

constexpr const char* kConfig = R"({"cniVersion":"1.1.0","name":"net","type":"egressclass","prevResult":{"ips":[]}})";

Variables variables(const std::string& command) {
  return {{"CNI_COMMAND", command}, {"CNI_CONTAINERID", "c1"}, {"CNI_NETNS", "/run/netns/p"}, {"CNI_IFNAME", "eth0"}};
}

Variables with(Variables base, const Variables& changes) {
  for (const auto& [name, value] : changes) base[name] = value;
  return base;
}

Result<Request> parse(const Variables& env, const Result<std::string>& input = std::string(kConfig),
                      std::string* version = nullptr) {
  return parse_request(
      [&env](const char* name) {
        const auto found = env.find(name);
        return found == env.end() ? nullptr : found->second.c_str();
      },
      [&input] { return input; }, version);
}

Result<Request> parse_add(const std::string& input) { return parse(variables("ADD"), input); }

Request add(const std::string& prev_result, const std::string& version = "1.0.0", const std::string& extra = "") {
  const auto request =
      parse_add(R"({"cniVersion":")" + version + R"(","name":"net",)" + extra + R"("prevResult":)" + prev_result + "}");
  EXPECT_TRUE(request) << (request ? "" : request.error().msg + request.error().details);
  return request ? *request : Request{};
}

void expect_error(const Result<Request>& request, int code, const std::string& text) {
  ASSERT_FALSE(request) << "expected: " << text;
  EXPECT_EQ(request.error().code, code) << text;
  const std::string all = request.error().msg + "; " + request.error().details;
  EXPECT_NE(all.find(text), std::string::npos) << "expected: " << text << "\ngot: " << all;
}

// ---- environment

TEST(ParseRequest, ReadsAWholeAdd) {
  const auto request = parse(with(variables("ADD"), {{"CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"}}));
  ASSERT_TRUE(request);
  EXPECT_EQ(request->verb, Verb::kAdd);
  EXPECT_EQ(request->cni_version, "1.1.0");
  EXPECT_EQ(request->network, "net");
  EXPECT_EQ(request->container_id, "c1");
  EXPECT_EQ(request->netns, "/run/netns/p");
  EXPECT_EQ(request->ifname, "eth0");
  EXPECT_EQ(request->args.at("K8S_POD_NAME"), "web");
  EXPECT_EQ(request->config.at("type"), "egressclass");
}

TEST(ParseRequest, Cni1NamesAllMissingVariablesAtOnce) {
  struct Case {
    const char* command;
    const char* missing;
  };
  for (const auto& [command, missing] : std::vector<Case>{{"ADD", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]"},
                                                          {"CHECK", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]"},
                                                          {"DEL", "[CNI_CONTAINERID,CNI_IFNAME]"}})
    expect_error(parse({{"CNI_COMMAND", command}}), codes::kInvalidEnvironment,
                 std::string("required env variables ") + missing + " missing");
  expect_error(parse(with(variables("ADD"), {{"CNI_NETNS", ""}})), codes::kInvalidEnvironment, "[CNI_NETNS]");
}

TEST(ParseRequest, Cni1And15NeedNoMoreThanTheSpecificationAsksFor) {
  EXPECT_TRUE(parse(with(variables("DEL"), {{"CNI_NETNS", ""}})));
  for (const char* command : {"GC", "STATUS", "VERSION"}) EXPECT_TRUE(parse({{"CNI_COMMAND", command}})) << command;
}

TEST(ParseRequest, Cni1ReadsStdinOnlyOfAGoodEnvironment) {
  for (const char* command : {"", "FOO", "ADD"}) {
    bool read = false;
    const auto request = parse_request(
        [command](const char* name) { return std::string_view(name) == "CNI_COMMAND" ? command : nullptr; },
        [&read]() -> Result<std::string> {
          read = true;
          return std::string();
        });
    EXPECT_FALSE(request);
    EXPECT_FALSE(read) << command;
  }
}

TEST(ParseRequest, Cni2RefusesIllFormedContainerIds) {
  for (const char* id : {"-a", ".a", "_a", "a/b", "a b", "a\nb", "a,b", "../x", "\xc3\xa9"})
    expect_error(parse(with(variables("ADD"), {{"CNI_CONTAINERID", id}})), codes::kInvalidEnvironment,
                 "CNI_CONTAINERID");
  for (const char* id : {"a", "0", "a_b.c-d", "cnitool-77383ca0a0715733ca6f"})
    EXPECT_TRUE(parse(with(variables("ADD"), {{"CNI_CONTAINERID", id}}))) << id;
}

TEST(ParseRequest, Cni2RefusesIllFormedInterfaceNames) {
  for (const char* name : {"sixteen-chars-xx", "a/b", "a:b", "a b", ".", ".."})
    expect_error(parse(with(variables("DEL"), {{"CNI_IFNAME", name}})), codes::kInvalidEnvironment, "CNI_IFNAME");
  EXPECT_TRUE(parse(with(variables("DEL"), {{"CNI_IFNAME", "fifteen-chars-x"}})));
}

TEST(ParseRequest, Cni2IgnoresThePodsVariablesWhereThereIsNoPod) {
  for (const char* command : {"GC", "STATUS", "VERSION"})
    EXPECT_TRUE(parse(with(variables(command), {{"CNI_CONTAINERID", "/"}, {"CNI_IFNAME", "/"}, {"CNI_ARGS", "x"}})));
}

TEST(ParseRequest, Cni3RefusesAnUnknownVerb) {
  expect_error(parse({{"CNI_COMMAND", "add"}}), codes::kInvalidEnvironment, "unknown CNI_COMMAND: add");
  expect_error(parse({{"CNI_COMMAND", ""}}), codes::kInvalidEnvironment, "[CNI_COMMAND]");
  expect_error(parse({}), codes::kInvalidEnvironment, "[CNI_COMMAND]");
}

// ---- stdin

TEST(ParseRequest, Cni4VersionTakesAnyStdin) {
  for (const char* text : {"", "{", "[]", "{}", R"({"cniVersion":7})", R"({"cniVersion":null})"}) {
    const auto request = parse({{"CNI_COMMAND", "VERSION"}}, std::string(text));
    ASSERT_TRUE(request) << text;
    EXPECT_EQ(request->cni_version, "") << text;
  }
  EXPECT_TRUE(parse({{"CNI_COMMAND", "VERSION"}}, make_error("cannot read")));
  EXPECT_EQ(parse({{"CNI_COMMAND", "VERSION"}}, std::string(R"({"cniVersion":"0.4.0"})"))->cni_version, "0.4.0");
}

TEST(ParseRequest, Cni5MatchesTheVersionExactly) {
  for (const std::string& version : kSupportedVersions)
    EXPECT_TRUE(parse_add(R"({"cniVersion":")" + version + R"(","name":"net","prevResult":{}})")) << version;
  for (const char* version : {"0.1.0", "0.2.0", "1.0", "1.0.0 ", "v1.0.0", "1.2.0", ""}) {
    const auto request = parse_add(std::string(R"({"cniVersion":")") + version + R"(","name":"net","prevResult":{}})");
    expect_error(request, codes::kIncompatibleVersion, "incompatible CNI versions");
    expect_error(request, codes::kIncompatibleVersion, '"' + std::string(version) + '"');
    expect_error(request, codes::kIncompatibleVersion, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0");
  }
  expect_error(parse_add(R"({"name":"net","prevResult":{}})"), codes::kIncompatibleVersion, "\"0.1.0\"");
  expect_error(parse_add(R"({"cniVersion":1,"name":"net"})"), codes::kDecodingFailure, "cniVersion");
}

TEST(ParseRequest, Cni6AllowsAVerbFromItsVersionOn) {
  struct Case {
    const char* command;
    const char* version;
    bool allowed;
  };
  for (const auto& [command, version, allowed] : std::vector<Case>{{"CHECK", "0.3.1", false},
                                                                   {"CHECK", "0.4.0", true},
                                                                   {"GC", "1.0.0", false},
                                                                   {"GC", "1.1.0", true},
                                                                   {"STATUS", "1.0.0", false},
                                                                   {"STATUS", "1.1.0", true},
                                                                   {"DEL", "0.3.0", true}}) {
    const auto request = parse(variables(command), std::string(R"({"cniVersion":")") + version + R"(","name":"net"})");
    if (allowed)
      EXPECT_TRUE(request) << command << version;
    else
      expect_error(request, codes::kIncompatibleVersion, std::string("does not allow ") + command);
  }
}

TEST(ParseRequest, Cni7TellsTheKindsOfBadStdinApart) {
  expect_error(parse(variables("ADD"), make_error("too large", "stdin: more than 9 bytes")), codes::kIoFailure,
               "too large: stdin: more than 9 bytes");
  for (const char* text : {"", "{", "{\"a\":}", "{} {}", "\xff"})
    expect_error(parse_add(text), codes::kDecodingFailure, "line 1, column");
  for (const char* text : {"[]", "null", "\"x\"", "7"})
    expect_error(parse_add(text), codes::kDecodingFailure, "object");
  for (const char* text : {R"({"cniVersion":"1.0.0"})", R"({"name":null})"})
    expect_error(parse_add(text), codes::kInvalidNetworkConfig, "missing network name");
  for (const char* name : {"7", "{}", "\"\"", "\"-a\"", "\"a/b\"", "\"a,b\"", "\"a b\"", "\"\\u0000\""})
    expect_error(parse_add(std::string(R"({"cniVersion":"1.0.0","name":)") + name + "}"), codes::kInvalidNetworkConfig,
                 "invalid network name");
}

TEST(ParseRequest, Cni7BoundsTheNestingOfStdin) {
  const std::string deep(200000, '[');
  expect_error(parse_add(R"({"cniVersion":"1.0.0","name":"net","x":)" + deep), codes::kDecodingFailure, "64 levels");
}

TEST(ParseRequest, Cni9TellsTheVersionForTheErrorAsSoonAsItIsKnown) {
  struct Case {
    const char* text;
    const char* version;
  };
  for (const auto& [text, expected] : std::vector<Case>{{R"({"cniVersion":"0.4.0"})", "0.4.0"},
                                                        {R"({"cniVersion":"9.9.9","name":"net"})", "before"},
                                                        {"{", "before"}}) {
    std::string version = "before";
    EXPECT_FALSE(parse(variables("ADD"), std::string(text), &version));
    EXPECT_EQ(version, expected) << text;
  }
}

TEST(ParseRequest, Cni14IgnoresTheKeysOfOthers) {
  EXPECT_TRUE(parse_add(R"({"cniVersion":"1.0.0","name":"net","prevResult":{},"capabilities":[],"ipam":7,
                            "dns":null,"args":"x","cni.dev/valid-attachments":{},"unknown":[[]]})"));
}

TEST(ParseRequest, Cni17RefusesAnAddThatIsNotChained) {
  for (const char* previous : {"", R"(,"prevResult":null)"})
    expect_error(parse_add(std::string(R"({"cniVersion":"1.0.0","name":"net")") + previous + "}"),
                 codes::kInvalidNetworkConfig, "must be called as a chained plugin");
  for (const char* previous : {"[]", "7", "\"x\""})
    expect_error(parse_add(std::string(R"({"cniVersion":"1.0.0","name":"net","prevResult":)") + previous + "}"),
                 codes::kInvalidNetworkConfig, "prevResult is no JSON object");
}

TEST(ParseRequest, Cni33DelAndCheckNeedNoPrevResult) {
  for (const char* command : {"DEL", "CHECK"})
    for (const char* previous : {"", R"(,"prevResult":null)", R"(,"prevResult":[])"})
      EXPECT_TRUE(parse(variables(command), std::string(R"({"cniVersion":"1.0.0","name":"net")") + previous + "}"));
}

// ---- the attachment's key

TEST(AttachmentKey, Cni35HasOneReadingOnly) {
  Request request;
  request.network = "a-b";
  request.container_id = "c.d";
  request.ifname = "e,f";
  EXPECT_EQ(request.attachment_key(), "a-b,c.d,e,f");
}

TEST(AttachmentKey, IsBoundedWhereAFileWouldBeMade) {
  const auto id_of = [](std::size_t key_size) { return std::string(key_size - std::string("net,,eth0").size(), 'a'); };
  for (const char* command : {"ADD", "CHECK"}) {
    const auto longest = parse(with(variables(command), {{"CNI_CONTAINERID", id_of(kMaxAttachmentKey)}}));
    ASSERT_TRUE(longest);
    EXPECT_EQ(longest->attachment_key().size(), kMaxAttachmentKey);
    expect_error(parse(with(variables(command), {{"CNI_CONTAINERID", id_of(kMaxAttachmentKey + 1)}})),
                 codes::kInvalidEnvironment, "too long");
  }
  // What was never added is deleted with success: an error would keep the other plugins' DEL from running.
  EXPECT_TRUE(parse(with(variables("DEL"), {{"CNI_CONTAINERID", id_of(kMaxAttachmentKey + 1)}})));
}

// ---- CNI_ARGS

TEST(Args, Cni52AnyOrderUnknownKeysFirstEqualsSignDuplicatesEmptyValues) {
  struct Case {
    const char* text;
    std::map<std::string, std::string> args;
  };
  for (const auto& [text, args] : std::vector<Case>{{"", {}},
                                                    {"A=1;B=2", {{"A", "1"}, {"B", "2"}}},
                                                    {"B=2;A=1", {{"A", "1"}, {"B", "2"}}},
                                                    {"A=x=y==", {{"A", "x=y=="}}},
                                                    {"A=1;A=2", {{"A", "2"}}},
                                                    {"A=", {{"A", ""}}},
                                                    {";;A=1;;B=2;", {{"A", "1"}, {"B", "2"}}}}) {
    const auto request = parse(with(variables("ADD"), {{"CNI_ARGS", text}}));
    ASSERT_TRUE(request) << text;
    EXPECT_EQ(request->args, args) << text;
  }
}

TEST(Args, Cni53NeedNoPodUid) {
  const auto request = parse(with(variables("ADD"), {{"CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"}}));
  ASSERT_TRUE(request);
  EXPECT_EQ(request->args.count("K8S_POD_UID"), 0U);
}

TEST(Args, Cni52IllFormedOrHugeArgsFailAllButDel) {
  for (const std::string& text : {std::string("A"), std::string("A=1;B"), std::string("=1"), std::string(" "),
                                  "A=" + std::string((16U << 10U) - 1, 'x')}) {
    const Variables changes = {{"CNI_ARGS", text}};
    for (const char* command : {"ADD", "CHECK"})
      expect_error(parse(with(variables(command), changes)), codes::kInvalidEnvironment, "CNI_ARGS");
    const auto del = parse(with(variables("DEL"), changes));
    ASSERT_TRUE(del);
    EXPECT_TRUE(del->args.empty());
  }
  EXPECT_TRUE(parse(with(variables("ADD"), {{"CNI_ARGS", "A=" + std::string((16U << 10U) - 2, 'x')}})));
}

// ---- annotations

TEST(Annotations, Cni54And55AreTheTextsThatTheRuntimeSent) {
  const auto annotations = [](const std::string& runtime_config) {
    return add("{}", "1.0.0", R"("runtimeConfig":)" + runtime_config + ",").annotations();
  };
  const std::string key = "io.kubernetes.cri.pod-annotations";
  EXPECT_FALSE(add("{}").annotations());
  for (const char* runtime : {"null", "[]", "{}", "7"}) EXPECT_FALSE(annotations(runtime)) << runtime;
  for (const char* value : {"null", "[]", "\"x\"", "7"}) EXPECT_FALSE(annotations("{\"" + key + "\":" + value + "}"));
  const auto empty = annotations("{\"" + key + "\":{}}");
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->empty());
  EXPECT_EQ(annotations("{\"" + key + R"(":{"a":"1","b":2,"c":null,"d":{},"e":""}})"),
            (std::map<std::string, std::string>{{"a", "1"}, {"e", ""}}));
}

// ---- prevResult

TEST(PassThrough, Cni18KeepsTheObjectAsItIs) {
  const std::string result =
      R"({"zeta":[1,2.5,-3,18446744073709551615],"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"no mac",)"
      R"("sandbox":"","vendor":{"b":1,"a":null}}],"ips":null,"routes":[{"dst":"0.0.0.0/0","mtu":1400}],"dns":{}})";
  EXPECT_EQ(*pass_through(add(result)), result);
}

TEST(PassThrough, Cni19TakesAMissingVersionForTheConfigs) {
  EXPECT_EQ(*pass_through(add(R"({"ips":[{"version":"4","address":"10.0.0.2/24"}]})", "0.4.0")),
            R"({"ips":[{"version":"4","address":"10.0.0.2/24"}],"cniVersion":"0.4.0"})");
  EXPECT_EQ(*pass_through(add(R"({"cniVersion":null,"a":1})")), R"({"cniVersion":"1.0.0","a":1})");
}

TEST(PassThrough, Cni19ConvertsBetweenVersions) {
  struct Case {
    const char* to;
    const char* before;
    const char* after;
  };
  for (const auto& [to, before, after] : std::vector<Case>{
           {"0.4.0", R"({"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]})",
            R"({"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]})"},
           {"1.0.0", R"({"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24","x":1}],"y":2})",
            R"({"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24","x":1}],"y":2})"},
           {"0.4.0", R"({"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}]})",
            R"({"cniVersion":"0.4.0","ips":[{"address":"10.0.0.2/24","version":"4"},)"
            R"({"address":"fd00::2/64","version":"6"}]})"},
           {"0.3.0",
            R"({"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1500,"socketPath":"/s","pciID":"p","z":1}],)"
            R"("routes":[{"dst":"0.0.0.0/0","mtu":1,"advmss":2,"priority":3,"table":4,"scope":5,"gw":"10.0.0.1"}]})",
            R"({"cniVersion":"0.3.0","interfaces":[{"name":"eth0","z":1}],)"
            R"("routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]})"},
           {"1.0.0", R"({"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1500}]})",
            R"({"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mtu":1500}]})"},
       })
    EXPECT_EQ(*pass_through(add(before, to)), after);
}

TEST(PassThrough, Cni20ConvertsOddListsWithoutHarm) {
  for (const char* rest : {R"("ips":null,"interfaces":null,"routes":null)", R"("ips":{},"interfaces":7,"routes":"x")",
                           R"("ips":[null,7,{"address":5},{}],"interfaces":[[]],"routes":[false])"})
    for (const auto& [from, to] :
         std::vector<std::pair<std::string, std::string>>{{"0.4.0", "1.0.0"}, {"1.1.0", "0.3.1"}}) {
      const auto output = pass_through(add(R"({"cniVersion":")" + from + "\"," + rest + "}", to));
      ASSERT_TRUE(output);
      EXPECT_EQ(*output, R"({"cniVersion":")" + to + "\"," + rest + "}");
    }
}

TEST(PassThrough, Cni19RefusesAVersionThatItCannotConvert) {
  for (const char* version : {"\"0.2.0\"", "\"2.0.0\"", "7", "\"\""}) {
    const auto output = pass_through(add(std::string(R"({"cniVersion":)") + version + "}"));
    ASSERT_FALSE(output) << version;
    EXPECT_EQ(output.error().code, codes::kIncompatibleVersion);
  }
  EXPECT_FALSE(pass_through(Request{}));
}

TEST(ResultAddresses, Cni20AreThoseOfTheContainersInterface) {
  const std::string interfaces =
      R"("interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/ns"},{"name":"eth0","sandbox":""},)"
      R"({"name":"net1","sandbox":"/ns"},null,{"name":7,"sandbox":7}],)";
  struct Case {
    const char* ips;
    std::vector<std::string> addresses;
  };
  for (const auto& [ips, addresses] : std::vector<Case>{
           {R"([{"address":"10.0.0.2/24","interface":1},{"address":"fd00::2/64","interface":1}])",
            {"10.0.0.2/24", "fd00::2/64"}},
           {R"([{"address":"10.0.0.2/24"}])", {"10.0.0.2/24"}},
           {R"([{"address":"10.0.0.2/24","interface":null}])", {"10.0.0.2/24"}},
           {R"([{"address":"10.0.0.2/24","interface":0}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":2}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":3}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":4}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":5}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":6}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":-1}])", {}},
           {R"([{"address":"10.0.0.2/24","interface":"1"}])", {}},
           {R"([{"address":7},{},null,7,[]])", {}},
           {"[]", {}},
           {"null", {}},
           {"{}", {}},
       })
    EXPECT_EQ(add("{" + interfaces + R"("ips":)" + ips + "}").result_addresses(), addresses) << ips;
}

TEST(ResultAddresses, Cni20NeedNoListOfInterfaces) {
  EXPECT_EQ(add(R"({"interfaces":null,"ips":[{"address":"10.0.0.2/24"},{"address":"10.0.0.3/24","interface":0}]})")
                .result_addresses(),
            std::vector<std::string>{"10.0.0.2/24"});
  EXPECT_TRUE(Request{}.result_addresses().empty());
}

// ---- answers

TEST(FormatError, Cni9HasAllFourKeys) {
  EXPECT_EQ(format_error(Error{7, "what", "why"}, "0.4.0"),
            R"({"cniVersion":"0.4.0","code":7,"msg":"what","details":"why"})");
  EXPECT_EQ(format_error(Error{7, "", ""}, ""), R"({"cniVersion":"1.1.0","code":7,"msg":"","details":""})");
}

TEST(FormatError, Cni9StaysJsonWhateverTheTexts) {
  const std::string hostile = std::string("\xff\xfe\"\\\n\0", 6) + "\xc3";
  EXPECT_TRUE(parse_json(format_error(Error{999, hostile, hostile}, hostile)));
}

TEST(FormatVersion, Cni4EchoesAVersionOfOurs) {
  const std::string rest = R"(,"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]})";
  EXPECT_EQ(format_version("0.3.1"), R"({"cniVersion":"0.3.1")" + rest);
  for (const char* asked : {"", "0.2.0", "9.9.9", "\xff"})
    EXPECT_EQ(format_version(asked), R"({"cniVersion":"1.1.0")" + rest);
}

}  // namespace
}  // namespace egressclass::cni
