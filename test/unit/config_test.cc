// SPDX-License-Identifier: Apache-2.0
#include "core/config.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include "core/mark.h"
#include "util/json.h"

namespace egressclass {
namespace {

constexpr const char* kValid = R"({
  "classes": [
    { "name": "billing",
      "select": [ { "namespaces": ["billing"] }, { "namespaces": ["shop"], "pods": ["checkout-*"] } ],
      "namespaces": ["billing", "shop-?"],
      "destinations": ["0.0.0.0/0", "::/0"],
      "except": ["10.0.0.0/8", "fd00::/8"],
      "gateways": [ { "address": "192.0.2.21", "interface": "eth1" } ],
      "egressIPs": ["203.0.113.7"],
      "mark": "0x3", "vni": 77 },
    { "name": "other",
      "default": true,
      "destinations": ["198.51.100.0/24"],
      "gateways": [ { "address": "192.0.2.22" } ],
      "egressIPs": ["203.0.113.8"] },
    { "name": "many",
      "destinations": [
        "::/0",
        { "cidr": "198.51.100.0/24", "ports": ["udp/5000-5100", "tcp/443", "icmp"] },
        { "cidr": "203.0.113.128/25", "ports": ["any"] },
        { "cidr": "2001:db8:2::/48" } ],
      "ports": ["tcp", "gre"],
      "otherwise": "drop",
      "otherFamily": "bypass",
      "gateways": [
        { "address": "192.0.2.22" },
        { "address": "2001:db8::21", "interface": "eth2", "egressIPs": ["2001:db8:1::7", "203.0.113.9"] },
        { "address": "192.0.2.21" },
        { "address": "192.0.2.254", "interface": "eth3", "via": "nexthop" } ],
      "egressIPs": ["203.0.113.10", "2001:db8:1::10", "203.0.113.11", "203.0.113.12"],
      "spread": "flow",
      "onChange": "cut", "force": true } ],
  "clusterCIDRs": ["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/48"],
  "nodes": ["192.0.2.21", "192.0.2.22/32", "2001:db8::/64"],
  "annotations": "ignore",
  "markMask": "0x1f7f",
  "tunnel": { "port": 4789 },
  "audit": { "folder": "/srv/audit", "fileMegabytes": 8, "maxMegabytes": 100, "maxDays": 30, "stdout": true, "syslog": true,
             "only": { "classes": ["bill*"], "pods": [ { "namespaces": ["shop"] } ], "destinations": ["10.0.0.0/8", "::1"] } }
})";

// A change to the valid file: the value at a JSON pointer.
struct Change {
  const char* path;
  const char* value;  // JSON; nullptr removes the key
};

std::string changed(const std::vector<Change>& changes) {
  Json json = *parse_json(kValid);
  for (const auto& [path, value] : changes) {
    Json step = {{"op", "remove"}, {"path", path}};
    if (value != nullptr)
      step = {{"op", json.contains(Json::json_pointer(path)) ? "replace" : "add"},
              {"path", path},
              {"value", *parse_json(value)}};
    json = json.patch(Json::array({step}));
  }
  return json.dump();
}

std::string problems_of(const std::string& text) {
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(text, &problems);
  EXPECT_EQ(config.has_value(), problems.empty());
  return format_problems("f", problems);
}

Config valid(const std::vector<Change>& changes = {}) {
  std::vector<ConfigProblem> problems;
  auto config = parse_config(changed(changes), &problems);
  EXPECT_TRUE(config) << format_problems("f", problems);
  return config.value_or(Config{});
}

Prefix prefix(const char* text) {
  std::string why;
  return Prefix::parse(text, true, &why).value_or(Prefix{});
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += (all.empty() ? "" : " ") + text;
  return all;
}

std::string ports_of(const Destination& destination) {
  std::vector<std::string> rules;
  for (const PortRule& rule : destination.ports) rules.push_back(rule.str());
  return joined(rules);
}

/// The gateways of a class, each with its egress IPs.
std::vector<std::string> gateways_of(const ClassConfig& c) {
  std::vector<std::string> gateways;
  for (const Gateway& gateway : c.gateways) {
    std::vector<std::string> texts = {gateway.address.str()};
    for (const Ip& egress_ip : gateway.egress_ips) texts.push_back(egress_ip.str());
    gateways.push_back(joined(texts));
  }
  return gateways;
}

std::vector<std::string> dealt(const char* gateways, const char* egress_ips) {
  return gateways_of(valid({{"/classes/2/gateways", gateways}, {"/classes/2/egressIPs", egress_ips}}).classes[2]);
}

using Texts = std::vector<std::string>;

TEST(Config, ReadsEveryKey) {
  const Config config = valid();
  ASSERT_EQ(config.classes.size(), 3U);
  const ClassConfig& billing = config.classes[0];
  EXPECT_EQ(billing.name, "billing");
  ASSERT_EQ(billing.select.size(), 2U);
  EXPECT_EQ(billing.select[0].namespaces, std::vector<std::string>{"billing"});
  EXPECT_TRUE(billing.select[0].pods.empty());
  EXPECT_EQ(billing.select[1].pods, std::vector<std::string>{"checkout-*"});
  EXPECT_FALSE(billing.is_default);
  EXPECT_EQ(billing.entitled, (std::vector<std::string>{"billing", "shop-?"}));
  EXPECT_EQ(billing.destinations, (std::vector<Destination>{{prefix("0.0.0.0/0"), {}}, {prefix("::/0"), {}}}));
  EXPECT_EQ(billing.except, (std::vector<Prefix>{prefix("10.0.0.0/8"), prefix("fd00::/8")}));
  EXPECT_EQ(gateways_of(billing), Texts{"192.0.2.21 203.0.113.7"});
  EXPECT_EQ(billing.gateways[0].interface, "eth1");
  EXPECT_EQ(billing.gateways[0].via, Via::kGateway);
  EXPECT_EQ(billing.mark, 3U);
  EXPECT_EQ(billing.vni, 77U);
  EXPECT_TRUE(config.classes[1].is_default);
  EXPECT_EQ(config.classes[1].gateways[0].interface, "");
  EXPECT_FALSE(config.classes[1].mark);

  const ClassConfig& many = config.classes[2];
  ASSERT_EQ(many.destinations.size(), 4U);
  EXPECT_EQ(many.destinations[1].prefix, prefix("198.51.100.0/24"));
  EXPECT_EQ(ports_of(many.destinations[0]), "tcp gre");
  EXPECT_EQ(ports_of(many.destinations[1]), "icmp tcp/443 udp/5000-5100");
  EXPECT_EQ(ports_of(many.destinations[2]), "");
  EXPECT_EQ(ports_of(many.destinations[3]), "tcp gre");
  EXPECT_TRUE(many.otherwise_drop);
  EXPECT_TRUE(many.other_family_bypass);
  EXPECT_TRUE(many.spread_flows);
  EXPECT_FALSE(many.keep_flows);
  EXPECT_TRUE(many.force);
  EXPECT_EQ(gateways_of(many),
            (Texts{"192.0.2.22 203.0.113.10 2001:db8:1::10 203.0.113.12", "2001:db8::21 2001:db8:1::7 203.0.113.9",
                   "192.0.2.21 203.0.113.11", "192.0.2.254"}));
  EXPECT_EQ(many.gateways[1].interface, "eth2");
  EXPECT_EQ(many.gateways[1].via, Via::kGateway);
  EXPECT_EQ(many.gateways[3].interface, "eth3");
  EXPECT_EQ(many.gateways[3].via, Via::kNextHop);
  EXPECT_EQ(config.cluster_cidrs,
            (std::vector<Prefix>{prefix("10.244.0.0/16"), prefix("10.96.0.0/12"), prefix("fd00:244::/48")}));
  EXPECT_EQ(config.nodes,
            (std::vector<Prefix>{prefix("192.0.2.21/32"), prefix("192.0.2.22/32"), prefix("2001:db8::/64")}));
  EXPECT_FALSE(config.annotations);
  EXPECT_EQ(config.mark_mask, 0x1f7fU);
  EXPECT_EQ(config.tunnel_port, 4789);
  const AuditConfig audit{
      .folder = "/srv/audit",
      .file_megabytes = 8,
      .max_megabytes = 100,
      .max_days = 30,
      .to_stdout = true,
      .to_syslog = true,
      .classes = {"bill*"},
      .pods = {{.namespaces = {"shop"}, .pods = {}}},
      .destinations = {*Prefix::parse("10.0.0.0/8", false, nullptr), Prefix::host(*Ip::parse("::1"))}};
  EXPECT_EQ(config.audit, audit);
}

TEST(Config, HasDefaultsForAllButTheClasses) {
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(R"({"classes":[]})", &problems);
  ASSERT_TRUE(config) << format_problems("f", problems);
  EXPECT_TRUE(config->annotations);
  EXPECT_EQ(config->mark_mask, kDefaultMarkMask);
  EXPECT_EQ(config->tunnel_port, kDefaultTunnelPort);
  EXPECT_EQ(config->audit, AuditConfig{});
  EXPECT_TRUE(config->nodes.empty());
}

TEST(Config, HasDefaultsForMostKeysOfAClass) {
  const Config config = valid();
  const ClassConfig& other = config.classes[1];
  EXPECT_FALSE(other.otherwise_drop);
  EXPECT_FALSE(other.other_family_bypass);
  EXPECT_FALSE(other.spread_flows);
  EXPECT_TRUE(other.keep_flows);
  EXPECT_FALSE(other.force);
  EXPECT_TRUE(other.except.empty());
  EXPECT_TRUE(other.destinations[0].ports.empty());
}

TEST(Config, TakesTheDefaultsInWordsToo) {
  const ClassConfig many = valid({{"/classes/2/otherwise", "\"bypass\""},
                                  {"/classes/2/otherFamily", "\"drop\""},
                                  {"/classes/2/spread", "\"pod\""},
                                  {"/classes/2/onChange", "\"keep\""},
                                  {"/annotations", "\"honour\""}})
                               .classes[2];
  EXPECT_FALSE(many.otherwise_drop);
  EXPECT_FALSE(many.other_family_bypass);
  EXPECT_FALSE(many.spread_flows);
  EXPECT_TRUE(many.keep_flows);
  EXPECT_TRUE(valid({{"/annotations", "\"honour\""}}).annotations);
}

TEST(Config, GivesEveryDestinationThePortsOfTheClassUnlessItHasItsOwn) {
  const auto ports = [](const char* of_class) {
    Texts texts;
    const Config config = valid({{"/classes/2/ports", of_class}});
    for (const Destination& destination : config.classes[2].destinations) texts.push_back(ports_of(destination));
    return texts;
  };
  const std::string own = "icmp tcp/443 udp/5000-5100";
  EXPECT_EQ(ports(nullptr), (Texts{"", own, "", ""}));
  EXPECT_EQ(ports("[\"any\"]"), (Texts{"", own, "", ""}));
  EXPECT_EQ(
      ports("[\"sctp/9\", \"ah\", \"sctp\", \"esp\"]"),
      (Texts{"esp ah sctp sctp/9", own, "", "esp ah sctp sctp/9"}) /* as protocol numbers and ports are sorted */);
}

TEST(Config, DealsEgressIpsOutInOrderAndEachFamilyForItself) {
  const char* three = R"([{"address":"192.0.2.21"},{"address":"192.0.2.22"},{"address":"2001:db8::21"}])";
  EXPECT_EQ(dealt(three, R"(["203.0.113.9"])"), (Texts{"192.0.2.21 203.0.113.9", "192.0.2.22", "2001:db8::21"}));
  EXPECT_EQ(dealt(three, R"(["2001:db8:1::9"])"), (Texts{"192.0.2.21 2001:db8:1::9", "192.0.2.22", "2001:db8::21"}));
  EXPECT_EQ(dealt(three, R"(["203.0.113.9", "203.0.113.10", "2001:db8:1::9", "203.0.113.11", "203.0.113.12"])"),
            (Texts{"192.0.2.21 203.0.113.9 2001:db8:1::9 203.0.113.12", "192.0.2.22 203.0.113.10",
                   "2001:db8::21 203.0.113.11"}));
  EXPECT_EQ(dealt(three, R"(["2001:db8:1::9", "2001:db8:1::10", "203.0.113.9", "2001:db8:1::11", "2001:db8:1::12"])"),
            (Texts{"192.0.2.21 2001:db8:1::9 203.0.113.9 2001:db8:1::12", "192.0.2.22 2001:db8:1::10",
                   "2001:db8::21 2001:db8:1::11"}));
}

TEST(Config, DealsNothingToGatewaysWithEgressIpsOfTheirOwnAndToNextHops) {
  EXPECT_EQ(dealt(R"([{"address":"192.0.2.254","via":"nexthop"},
                      {"address":"192.0.2.21","egressIPs":["2001:db8:1::7"]},
                      {"address":"192.0.2.22"}])",
                  R"(["203.0.113.9", "203.0.113.10"])"),
            (Texts{"192.0.2.254", "192.0.2.21 2001:db8:1::7", "192.0.2.22 203.0.113.9 203.0.113.10"}));
  EXPECT_EQ(dealt(R"([{"address":"192.0.2.254","via":"nexthop"},{"address":"2001:db8::fe","via":"nexthop"}])", nullptr),
            (Texts{"192.0.2.254", "2001:db8::fe"}));
  EXPECT_EQ(dealt(R"([{"address":"192.0.2.21","egressIPs":["203.0.113.9"]},
                      {"address":"192.0.2.22","egressIPs":["203.0.113.10", "203.0.113.8"]}])",
                  nullptr),
            (Texts{"192.0.2.21 203.0.113.9", "192.0.2.22 203.0.113.10 203.0.113.8"}));
}

/// `count` addresses as a JSON list: `network` with the numbers from 1.
std::string addresses(const std::string& network, int count, const std::string& rest = "") {
  std::string list;
  for (int i = 1; i <= count; ++i) list += (list.empty() ? "\"" : ",\"") + network + std::to_string(i) + '"';
  return '[' + list + rest + ']';
}

TEST(Config, AcceptsAsManyEgressIpsPerGatewayAndFamilyAsTheDatapathHas) {
  const std::string two = R"([{"address":"192.0.2.21"},{"address":"192.0.2.22"}])";
  const auto with = [](const std::string& gateways, const std::string& egress_ips) {
    return changed({{"/classes/0/gateways", gateways.c_str()},
                    {"/classes/0/egressIPs", egress_ips.empty() ? nullptr : egress_ips.c_str()}});
  };
  const auto one_too_many = [](const std::string& place, const std::string& ip, const std::string& family) {
    return "f: classes[0]." + place + ": \"" + ip + "\": is one too many: gateway 192.0.2.21 has 8 " + family +
           " addresses in this class already, and may have no more\n";
  };
  const std::string v4 = "198.51.100.";
  const std::string v6 = "2001:db8:3::";
  const char* two_v4 = R"(,"198.51.100.1","198.51.100.2")";
  const char* two_v6 = R"(,"2001:db8:3::1","2001:db8:3::2")";
  for (const auto& [network, others, family] : {std::tuple(v4, two_v6, "IPv4"), std::tuple(v6, two_v4, "IPv6")}) {
    const std::string one = R"([{"address":"192.0.2.21"}])";
    EXPECT_EQ(problems_of(with(one, addresses(network, 8))), "");
    EXPECT_EQ(problems_of(with(one, addresses(network, 8, others))), "");
    EXPECT_EQ(problems_of(with(one, addresses(network, 9))), one_too_many("egressIPs[8]", network + "9", family));
    EXPECT_EQ(problems_of(with(one, addresses(network, 10))), one_too_many("egressIPs[8]", network + "9", family));
    EXPECT_EQ(problems_of(with(two, addresses(network, 16))), "");
    EXPECT_EQ(problems_of(with(two, addresses(network, 17))), one_too_many("egressIPs[16]", network + "17", family));
    const std::string own = R"([{"address":"192.0.2.21","egressIPs":)" + addresses(network, 9) + "}]";
    EXPECT_EQ(problems_of(with(own, "")), one_too_many("gateways[0].egressIPs[8]", network + "9", family));
  }
}

TEST(Config, AcceptsAsManyGatewaysAsTheDatapathHas) {
  const auto gateways = [](int count) {
    std::string list;
    for (int i = 1; i <= count; ++i)
      list += std::string(list.empty() ? "" : ",") + R"({"address":"2001:db8::)" + std::to_string(i) + R"("})";
    return '[' + list + ']';
  };
  EXPECT_EQ(problems_of(changed({{"/classes/0/gateways", gateways(16).c_str()}})), "");
  EXPECT_EQ(problems_of(changed({{"/classes/0/gateways", gateways(17).c_str()}})),
            "f: classes[0].gateways: array: has 17 gateways, and there may be 16\n");
}

TEST(Config, LetsNoTwoMachinesOwnAnEgressIp) {
  const char* own = R"([{"address":"192.0.2.21","egressIPs":["203.0.113.7"]},
                        {"address":"192.0.2.22","egressIPs":["203.0.113.70","203.0.113.7"]}])";
  EXPECT_EQ(problems_of(changed({{"/classes/0/egressIPs", nullptr}, {"/classes/0/gateways", own}})),
            "f: classes[0].gateways[1].egressIPs[1]: \"203.0.113.7\": is for gateway 192.0.2.22 here, and by "
            "classes[0].gateways[0].egressIPs[0] for gateway 192.0.2.21: two machines would own it\n");
  const char* own_and_dealt = R"([{"address":"192.0.2.21","egressIPs":["203.0.113.7"]},{"address":"192.0.2.22"}])";
  EXPECT_EQ(problems_of(changed({{"/classes/0/gateways", own_and_dealt}})),
            "f: classes[0].egressIPs[0]: \"203.0.113.7\": is for gateway 192.0.2.22 here, and by "
            "classes[0].gateways[0].egressIPs[0] for gateway 192.0.2.21: two machines would own it\n");
  EXPECT_EQ(problems_of(changed({{"/classes/1/egressIPs/0", "\"203.0.113.7\""}})),
            "f: classes[1].egressIPs[0]: \"203.0.113.7\": is for gateway 192.0.2.22 here, and by "
            "classes[0].egressIPs[0] for gateway 192.0.2.21: two machines would own it\n");
  EXPECT_EQ(problems_of(changed({{"/classes/0/egressIPs/0", "\"2001:db8:1::7\""}})),
            "f: classes[2].gateways[1].egressIPs[0]: \"2001:db8:1::7\": is for gateway 2001:db8::21 here, and by "
            "classes[0].egressIPs[0] for gateway 192.0.2.21: two machines would own it\n");
  // The second of two is on the second gateway: by the dealing out, not by the place in the file.
  const char* two = R"([{"address":"192.0.2.21"},{"address":"192.0.2.22"}])";
  const std::vector<Change> apart = {{"/classes/0/gateways", two},
                                     {"/classes/0/egressIPs", R"(["203.0.113.7","203.0.113.8"])"}};
  EXPECT_EQ(problems_of(changed(apart)), "");
  const std::vector<Change> crossed = {{"/classes/0/gateways", two},
                                       {"/classes/0/egressIPs", R"(["203.0.113.8","203.0.113.7"])"}};
  EXPECT_EQ(problems_of(changed(crossed)),
            "f: classes[1].egressIPs[0]: \"203.0.113.8\": is for gateway 192.0.2.22 here, and by "
            "classes[0].egressIPs[0] for gateway 192.0.2.21: two machines would own it\n");
}

TEST(Config, TakesIpv6AddressesInAllTheirSpellingsForOne) {
  const ClassConfig c = valid({{"/classes/0/gateways/0/address", "\"2001:DB8:0:0::21\""},
                               {"/classes/0/egressIPs/0", "\"2001:0DB8:0001::00ab\""},
                               {"/classes/0/destinations/1", "\"2001:Db8:AA::/48\""}})
                            .classes[0];
  EXPECT_EQ(gateways_of(c), Texts{"2001:db8::21 2001:db8:1::ab"});
  EXPECT_EQ(c.destinations[1].prefix.str(), "2001:db8:aa::/48");
}

TEST(Config, FindsAClassByName) {
  const Config config = valid();
  EXPECT_EQ(config.find("other"), &config.classes[1]);
  EXPECT_EQ(config.find("othe"), nullptr);
  EXPECT_EQ(Config{}.find(""), nullptr);
}

TEST(Config, AcceptsWhatLooksOddButIsRight) {
  const std::vector<std::vector<Change>> cases = {
      // two classes may share an egress IP of one gateway
      {{"/classes/1/egressIPs/0", "\"203.0.113.7\""}, {"/classes/1/gateways/0/address", "\"192.0.2.21\""}},
      {{"/classes/0/egressIPs/0", "\"2001:db8:1::7\""}, {"/classes/0/gateways/0/address", "\"2001:db8::21\""}},
      // destinations and egress IPs of different families: "otherFamily" says what becomes of them
      {{"/classes/0/destinations", "[\"::/0\"]"}, {"/classes/0/except", nullptr}},
      {{"/classes/0/destinations", "[\"0.0.0.0/0\"]"}, {"/classes/0/egressIPs/0", "\"2001:db8:1::9\""}},
      {{"/classes/0/except", "[\"::/1\", \"0.0.0.0/32\"]"}},
      {{"/classes/0/ports", "[\"tcp\", \"tcp/443\", \"tcp/443-444\"]"}},  // they may overlap
      {{"/classes/0/destinations/0", R"({"cidr":"198.51.100.7/32","ports":["any"]})"}},
      {{"/classes/2/gateways/3/address", "\"192.0.2.22\""},  // a next hop may be a node
       {"/classes/2/gateways/0/address", "\"2001:db8::22\""},
       {"/classes/1/gateways/0/address", "\"192.0.2.21\""}},
      {{"/classes/1/gateways/0", R"({"address":"192.0.2.254","via":"nexthop"})"}, {"/classes/1/egressIPs", nullptr}},
      {{"/classes/1/gateways/0/address", "\"192.0.2.21\""}},
      {{"/classes/0/select", "[]"}},
      {{"/classes/0/except", "[]"}},
      {{"/classes/0/except", "[\"0.0.0.0/1\"]"}},  // more specific than the destination
      {{"/classes/0/except", nullptr}},
      {{"/clusterCIDRs", "[]"}},
      {{"/clusterCIDRs", nullptr}},
      {{"/classes/1/default", "false"}},
      {{"/tunnel", "{}"}},
      {{"/audit", "{}"}},
      {{"/audit", "true"}},
      {{"/audit", "false"}},
      {{"/markMask", "127"}},
      {{"/markMask", "\"0xFF000000\""}, {"/classes/0/mark", "\"0x1000000\""}},
      {{"/classes/0/mark", "2048"}},
      {{"/classes/0/mark", "\"0xf7b\""}},
      {{"/classes/0/name", "\"0\""}},
      {{"/classes/0/name", "\"a.b-c\""}},
      {{"/classes/0/name", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\""}},
      {{"/classes/0/vni", "16777214"}},
      {{"/nodes", "[\"192.0.2.0/24\", \"2001:db8::/64\"]"}},
  };
  for (const auto& changes : cases) EXPECT_EQ(problems_of(changed(changes)), "") << changes[0].path;
}

TEST(Config, RefusesWhatIsWrongWithPathValueAndReason) {
  struct Case {
    std::vector<Change> changes;
    const char* problem;  // its line, from the beginning
  };
  const char* name64 = "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"";
  const std::vector<Case> cases = {
      // top level
      {{{"/classes", nullptr}}, "f: classes: required, but missing"},
      {{{"/classes", "{}"}}, "f: classes: {}: must be an array"},
      {{{"/classes", "null"}}, "f: classes: null: must be an array"},
      {{{"/classes/0", "7"}}, "f: classes[0]: 7: must be an object"},
      {{{"/colour", "1"}}, "f: colour: 1: unknown key\n"},
      {{{"/clusterCidrs", "[]"}}, "f: clusterCidrs: []: unknown key: did you mean \"clusterCIDRs\"?"},
      {{{"/fastPath", "false"}}, "f: fastPath: false: unknown key\n"},
      {{{"/clusterCIDRs/0", "\"10.244.0.1/16\""}}, "f: clusterCIDRs[0]: \"10.244.0.1/16\": host bits are set"},
      {{{"/clusterCIDRs/0", "\"10.244.0.1\""}}, "f: clusterCIDRs[0]: \"10.244.0.1\": no prefix length: write 10.2"},
      {{{"/clusterCIDRs/0", "5"}}, "f: clusterCIDRs[0]: 5: must be a text"},
      {{{"/clusterCIDRs/1", "\"10.244.0.0/16\""}}, "f: clusterCIDRs[1]: \"10.244.0.0/16\": is in this list already"},
      {{{"/nodes", nullptr}}, "f: nodes: required, but missing"},
      {{{"/nodes", "[]"}}, "f: nodes: []: must not be empty"},
      {{{"/nodes/1", "\"192.0.2.21/32\""}}, "f: nodes[1]: \"192.0.2.21/32\": is in this list already"},
      {{{"/nodes/1", "\"node2\""}}, "f: nodes[1]: \"node2\": no IP prefix"},
      {{{"/annotations", "\"maybe\""}}, "f: annotations: \"maybe\": must be \"honour\" or \"ignore\""},
      {{{"/annotations", "true"}}, "f: annotations: true: must be a text"},
      {{{"/markMask", "\"1f7f\""}}, "f: markMask: \"1f7f\": must be 32 bits"},
      {{{"/markMask", "\"0x\""}}, "f: markMask: \"0x\": must be 32 bits"},
      {{{"/markMask", "\"0x1g\""}}, "f: markMask: \"0x1g\": must be 32 bits"},
      {{{"/markMask", "\"0x100000000\""}}, "f: markMask: \"0x100000000\": must be 32 bits"},
      {{{"/markMask", "4294967296"}}, "f: markMask: 4294967296: must be 32 bits"},
      {{{"/markMask", "-1"}}, "f: markMask: -1: must be 32 bits"},
      {{{"/markMask", "7.0"}}, "f: markMask: 7.0: must be 32 bits"},
      {{{"/markMask", "\"0x11\""}}, "f: markMask: \"0x11\": must have at least 4 bits"},
      {{{"/audit", "1"}}, "f: audit: 1: must be true or false"},
      {{{"/audit/file", "1"}}, "f: audit.file: 1: unknown key"},
      {{{"/audit/folder", "\"log\""}}, "f: audit.folder: \"log\": must be an absolute path"},
      {{{"/audit/maxDays", "0"}}, "f: audit.maxDays: 0: must be a number from 1 to 3660"},
      {{{"/audit", R"({"fileMegabytes":101,"maxMegabytes":100})"}},
       "f: audit: {\"fileMegabytes\":101,\"maxMegabytes\":100}: \"maxMegabytes\" 100 has no room for one file"},
      {{{"/audit/only/pods/0", "{}"}}, "f: audit.only.pods[0]: {}: would select every pod"},
      {{{"/audit/only/classes", "[]"}}, "f: audit.only.classes: []: "},
      {{{"/audit/only/destinations/0", "\"10.0.0.1/8\""}}, "f: audit.only.destinations[0]: \"10.0.0.1/8\": "},
      {{{"/tunnel", "[]"}}, "f: tunnel: []: must be an object"},
      {{{"/tunnel/prot", "1"}}, "f: tunnel.prot: 1: unknown key: did you mean \"port\"?"},
      {{{"/tunnel/port", "0"}}, "f: tunnel.port: 0: must be a number from 1 to 65535"},
      {{{"/tunnel/port", "65536"}}, "f: tunnel.port: 65536: must be a number from 1 to 65535"},
      {{{"/tunnel/port", "\"8479\""}}, "f: tunnel.port: \"8479\": must be a number"},
      // name
      {{{"/classes/0/name", nullptr}}, "f: classes[0].name: required, but missing"},
      {{{"/classes/0/name", "\"\""}}, "f: classes[0].name: \"\": must be 1 to 63 characters"},
      {{{"/classes/0/name", "\"Billing\""}}, "f: classes[0].name: \"Billing\": must be"},
      {{{"/classes/0/name", "\"-a\""}}, "f: classes[0].name: \"-a\": must be"},
      {{{"/classes/0/name", "\"a.\""}}, "f: classes[0].name: \"a.\": must be"},
      {{{"/classes/0/name", "\"a/b\""}}, "f: classes[0].name: \"a/b\": must be"},
      {{{"/classes/0/name", name64}}, "f: classes[0].name: \"aaa"},
      {{{"/classes/1/name", "\"billing\""}}, "f: classes[1].name: \"billing\": is the name of another class already"},
      {{{"/classes/0/colour", "1"}}, "f: classes[0].colour: 1: unknown key\n"},
      {{{"/classes/0/egressIps", "[]"}}, "f: classes[0].egressIps: []: unknown key: did you mean \"egressIPs\"?"},
      // select, namespaces, default
      {{{"/classes/0/select", "{}"}}, "f: classes[0].select: {}: must be an array"},
      {{{"/classes/0/select/0", "{}"}}, "f: classes[0].select[0]: {}: would select every pod"},
      {{{"/classes/0/select/0", "\"shop\""}}, "f: classes[0].select[0]: \"shop\": must be an object"},
      {{{"/classes/0/select/0/labels", "[]"}}, "f: classes[0].select[0].labels: []: unknown key"},
      {{{"/classes/0/select/0/namespaces", "[]"}}, "f: classes[0].select[0].namespaces: []: must not be empty"},
      {{{"/classes/0/select/1/pods", "[]"}}, "f: classes[0].select[1].pods: []: must not be empty"},
      {{{"/classes/0/select/0/namespaces/0", "\"\""}},
       "f: classes[0].select[0].namespaces[0]: \"\": must be a pattern"},
      {{{"/classes/0/select/1/pods/0", "\"a[bc]\""}}, "f: classes[0].select[1].pods[0]: \"a[bc]\": must be a pattern"},
      {{{"/classes/0/namespaces", "[]"}}, "f: classes[0].namespaces: []: must not be empty"},
      {{{"/classes/0/namespaces/0", "\"Shop\""}}, "f: classes[0].namespaces[0]: \"Shop\": must be a pattern"},
      {{{"/classes/0/default", "\"yes\""}}, "f: classes[0].default: \"yes\": must be true or false"},
      {{{"/classes/0/default", "true"}}, "f: classes[1].default: true: class \"billing\" is the default already"},
      // destinations, except
      {{{"/classes/0/destinations", nullptr}}, "f: classes[0].destinations: required, but missing"},
      {{{"/classes/0/destinations", "[]"}}, "f: classes[0].destinations: []: must not be empty"},
      {{{"/classes/0/destinations", "\"0.0.0.0/0\""}}, "f: classes[0].destinations: \"0.0.0.0/0\": must be an array"},
      {{{"/classes/0/destinations/0", "null"}}, "f: classes[0].destinations[0]: null: must be a text"},
      {{{"/classes/0/destinations/0", "[]"}}, "f: classes[0].destinations[0]: []: must be a text"},
      {{{"/classes/0/destinations/0", "\"198.51.100.7/24\""}},
       "f: classes[0].destinations[0]: \"198.51.100.7/24\": host bits are set: write 198.51.100.0/24"},
      {{{"/classes/0/destinations/0", "\"2001:DB8:1::7/48\""}},
       "f: classes[0].destinations[0]: \"2001:DB8:1::7/48\": host bits are set: write 2001:db8:1::/48"},
      {{{"/classes/0/destinations/0", "\"198.51.100.7\""}},
       "f: classes[0].destinations[0]: \"198.51.100.7\": no prefix length: write 198.51.100.7/32"},
      {{{"/classes/0/destinations/0", "\"2001:db8:0::7\""}},
       "f: classes[0].destinations[0]: \"2001:db8:0::7\": no prefix length: write 2001:db8::7/128"},
      {{{"/classes/0/destinations/0", "\" 0.0.0.0/0\""}},
       "f: classes[0].destinations[0]: \" 0.0.0.0/0\": no IP prefix"},
      {{{"/classes/0/destinations/0", "\"::/0 \""}},
       "f: classes[0].destinations[0]: \"::/0 \": the prefix length is no number from 0 to 128"},
      {{{"/classes/0/destinations/0", "\"\""}}, "f: classes[0].destinations[0]: \"\": no IP prefix"},
      {{{"/classes/0/destinations/0", "\"0.0.0.0/33\""}},
       "f: classes[0].destinations[0]: \"0.0.0.0/33\": the prefix length is no number from 0 to 32"},
      {{{"/classes/0/destinations/0", "\"::/129\""}},
       "f: classes[0].destinations[0]: \"::/129\": the prefix length is no number from 0 to 128"},
      {{{"/classes/0/destinations/1", "\"0.0.0.0/0\""}},
       "f: classes[0].destinations[1]: \"0.0.0.0/0\": is in this list already"},
      {{{"/classes/0/destinations/0", "\"0:0::/0\""}},  // another spelling of the same
       "f: classes[0].destinations[1]: \"::/0\": is in this list already"},
      {{{"/classes/2/destinations/3/cidr", "\"198.51.100.0/24\""}},  // with other ports
       "f: classes[2].destinations[3].cidr: \"198.51.100.0/24\": is in this list already"},
      {{{"/classes/2/destinations/3/cidr", "\"::/0\""}},
       "f: classes[2].destinations[3].cidr: \"::/0\": is in this list already"},
      {{{"/classes/2/destinations/1", "{}"}}, "f: classes[2].destinations[1].cidr: required, but missing"},
      {{{"/classes/2/destinations/1/cidr", nullptr}}, "f: classes[2].destinations[1].cidr: required, but missing"},
      {{{"/classes/2/destinations/1/cidr", "7"}}, "f: classes[2].destinations[1].cidr: 7: must be a text"},
      {{{"/classes/2/destinations/1/cidr", "\"198.51.100.7\""}},
       "f: classes[2].destinations[1].cidr: \"198.51.100.7\": no prefix length"},
      {{{"/classes/2/destinations/1/cidr", "\"2001:db8::1/64\""}},
       "f: classes[2].destinations[1].cidr: \"2001:db8::1/64\": host bits are set"},
      {{{"/classes/2/destinations/1/port", "[]"}},
       "f: classes[2].destinations[1].port: []: unknown key: did you mean \"ports\"?"},
      {{{"/classes/0/except", "\"10.0.0.0/8\""}}, "f: classes[0].except: \"10.0.0.0/8\": must be an array"},
      {{{"/classes/0/except/0", "\"10.0.0.1/8\""}}, "f: classes[0].except[0]: \"10.0.0.1/8\": host bits are set"},
      {{{"/classes/0/except/1", "\"fd00::1/8\""}}, "f: classes[0].except[1]: \"fd00::1/8\": host bits are set"},
      {{{"/classes/0/except/0", "\"10.0.0.1\""}}, "f: classes[0].except[0]: \"10.0.0.1\": no prefix length"},
      {{{"/classes/0/except/1", "\"fd00::1\""}}, "f: classes[0].except[1]: \"fd00::1\": no prefix length"},
      {{{"/classes/0/except/0", "{\"cidr\":\"10.0.0.0/8\"}"}},
       "f: classes[0].except[0]: {\"cidr\":\"10.0.0.0/8\"}: must be a text"},
      {{{"/classes/0/except/1", "\"10.0.0.0/8\""}}, "f: classes[0].except[1]: \"10.0.0.0/8\": is in this list already"},
      {{{"/classes/0/except/0", "\"FD00::/8\""}}, "f: classes[0].except[1]: \"fd00::/8\": is in this list already"},
      {{{"/classes/0/except/0", "\"0.0.0.0/0\""}},
       "f: classes[0].except[0]: \"0.0.0.0/0\": is in \"destinations\" of this class too"},
      {{{"/classes/0/except/0", "\"::/0\""}},
       "f: classes[0].except[0]: \"::/0\": is in \"destinations\" of this class too"},
      {{{"/classes/2/except", "[\"198.51.100.0/24\"]"}},
       "f: classes[2].except[0]: \"198.51.100.0/24\": is in \"destinations\" of this class too"},
      // ports (all the texts that are no rule: ports_test.cc)
      {{{"/classes/2/ports", "\"tcp\""}}, "f: classes[2].ports: \"tcp\": must be an array"},
      {{{"/classes/2/ports", "[]"}}, "f: classes[2].ports: []: must not be empty"},
      {{{"/classes/2/ports/0", "443"}}, "f: classes[2].ports[0]: 443: must be a text"},
      {{{"/classes/2/ports/0", "\"TCP\""}},
       "f: classes[2].ports[0]: \"TCP\": unknown protocol: there are icmp, tcp, udp, sctp, gre, esp and ah, and"},
      {{{"/classes/2/ports/0", "\"tcp/0\""}},
       "f: classes[2].ports[0]: \"tcp/0\": the port must be a number from 1 to 65535"},
      {{{"/classes/2/ports/0", "\"tcp/65536\""}},
       "f: classes[2].ports[0]: \"tcp/65536\": the port must be a number from 1 to 65535"},
      {{{"/classes/2/ports/0", "\"tcp/444-443\""}},
       "f: classes[2].ports[0]: \"tcp/444-443\": the range ends before it begins"},
      {{{"/classes/2/ports/0", "\"icmp/8\""}}, "f: classes[2].ports[0]: \"icmp/8\": icmp has no ports"},
      {{{"/classes/2/ports/0", "\"any\""}}, "f: classes[2].ports[0]: \"any\": stands for everything: it has to be"},
      {{{"/classes/2/ports", "[\"any\",\"any\"]"}}, "f: classes[2].ports[1]: \"any\": stands for everything"},
      {{{"/classes/2/ports/1", "\"tcp\""}}, "f: classes[2].ports[1]: \"tcp\": is in this list already"},
      {{{"/classes/2/ports", "[\"udp/53\",\"udp/53-53\"]"}},
       "f: classes[2].ports[1]: \"udp/53-53\": is in this list already"},
      {{{"/classes/2/destinations/1/ports", "[]"}}, "f: classes[2].destinations[1].ports: []: must not be empty"},
      {{{"/classes/2/destinations/1/ports", "null"}}, "f: classes[2].destinations[1].ports: null: must be an array"},
      {{{"/classes/2/destinations/1/ports/2", "\"icmp \""}},
       "f: classes[2].destinations[1].ports[2]: \"icmp \": unknown protocol"},
      // otherwise, otherFamily, spread, onChange
      {{{"/classes/2/otherwise", "\"Drop\""}}, "f: classes[2].otherwise: \"Drop\": must be \"bypass\" or \"drop\"\n"},
      {{{"/classes/2/otherwise", "true"}}, "f: classes[2].otherwise: true: must be a text"},
      {{{"/classes/2/otherFamily", "\"ipv6\""}},
       "f: classes[2].otherFamily: \"ipv6\": must be \"drop\" or \"bypass\"\n"},
      {{{"/classes/2/spread", "\"flows\""}}, "f: classes[2].spread: \"flows\": must be \"pod\" or \"flow\"\n"},
      {{{"/classes/2/onChange", "\"\""}}, "f: classes[2].onChange: \"\": must be \"keep\" or \"cut\"\n"},
      {{{"/classes/2/force", "\"yes\""}}, "f: classes[2].force: \"yes\": must be true or false"},
      // gateways
      {{{"/classes/0/gateways", nullptr}}, "f: classes[0].gateways: required, but missing"},
      {{{"/classes/0/gateways", "[]"}}, "f: classes[0].gateways: []: must not be empty"},
      {{{"/classes/0/gateways", "{}"}}, "f: classes[0].gateways: {}: must be an array"},
      {{{"/classes/0/gateways", "[\"192.0.2.21\"]"}}, "f: classes[0].gateways[0]: \"192.0.2.21\": must be an object"},
      {{{"/classes/0/gateways/0/adress", "1"}},
       "f: classes[0].gateways[0].adress: 1: unknown key: did you mean \"address\"?"},
      {{{"/classes/0/gateways/0/address", nullptr}}, "f: classes[0].gateways[0].address: required, but missing"},
      {{{"/classes/0/gateways/0/address", "7"}}, "f: classes[0].gateways[0].address: 7: must be a text"},
      {{{"/classes/0/gateways/0/address", "\"gw\""}},
       "f: classes[0].gateways[0].address: \"gw\": must be an IP address"},
      {{{"/classes/0/gateways/0/address", "\"192.0.2.21/32\""}},
       "f: classes[0].gateways[0].address: \"192.0.2.21/32\": must be an IP address"},
      {{{"/classes/0/gateways/0/address", "\"2001:db8::21 \""}},
       "f: classes[0].gateways[0].address: \"2001:db8::21 \": must be an IP address"},
      {{{"/classes/0/gateways/0/address", "\"::ffff:192.0.2.21\""}},
       "f: classes[0].gateways[0].address: \"::ffff:192.0.2.21\": must be an IP address"},
      {{{"/classes/0/gateways/0/address", "\"192.0.2.23\""}},
       "f: classes[0].gateways[0].address: \"192.0.2.23\": is not in \"nodes\": its tunnel packets would be refused"},
      {{{"/classes/0/gateways/0/address", "\"2001:db8:0:1::21\""}},
       "f: classes[0].gateways[0].address: \"2001:db8:0:1::21\": is not in \"nodes\": its tunnel packets would"},
      {{{"/classes/2/gateways/2/address", "\"192.0.2.22\""}},
       "f: classes[2].gateways[2].address: \"192.0.2.22\": is a gateway of this class already"},
      {{{"/classes/2/gateways/2/address", "\"2001:DB8::21\""}},
       "f: classes[2].gateways[2].address: \"2001:DB8::21\": is a gateway of this class already"},
      {{{"/classes/2/gateways/3/address", "\"192.0.2.22\""}},
       "f: classes[2].gateways[3].address: \"192.0.2.22\": is a gateway of this class already"},
      {{{"/classes/0/gateways/0/interface", "\"sixteen-chars-xx\""}},
       "f: classes[0].gateways[0].interface: \"sixteen-chars-xx\": is no name of an interface"},
      {{{"/classes/0/gateways/0/interface", "\"\""}}, "f: classes[0].gateways[0].interface: \"\": is no name"},
      {{{"/classes/0/gateways/0/interface", "1"}}, "f: classes[0].gateways[0].interface: 1: must be a text"},
      // via
      {{{"/classes/0/gateways/0/via", "\"nextHop\""}},
       "f: classes[0].gateways[0].via: \"nextHop\": must be \"nexthop\", or left out: then it is a gateway of ours"},
      {{{"/classes/0/gateways/0/via", "true"}}, "f: classes[0].gateways[0].via: true: must be a text"},
      {{{"/classes/2/gateways/1/via", "\"nexthop\""}},
       "f: classes[2].gateways[1].egressIPs: [\"2001:db8:1::7\",\"203.0.113.9\"]: a next hop has no egress IPs of "
       "ours: it gets packets with the pod's address"},
      {{{"/classes/0/gateways/0/via", "\"nexthop\""}},
       "f: classes[0].egressIPs: [\"203.0.113.7\"]: no gateway takes them: each has its own, or is a next hop"},
      {{{"/classes/0/gateways/0/egressIPs", "[\"203.0.113.70\"]"}},
       "f: classes[0].egressIPs: [\"203.0.113.7\"]: no gateway takes them: each has its own, or is a next hop"},
      {{{"/classes/2/gateways/3/address", "\"192.0.2.21\""}, {"/classes/2/gateways/2/address", "\"2001:db8::22\""}},
       "f: classes[2].gateways[3].address: \"192.0.2.21\": is a next hop at one place and a gateway of ours at "
       "another: classes[0].gateways[0].address\n"},
      {{{"/classes/0/gateways/0", R"({"address":"2001:db8::21","via":"nexthop"})"}, {"/classes/0/egressIPs", nullptr}},
       "f: classes[2].gateways[1].address: \"2001:db8::21\": is a next hop at one place and a gateway of ours at "
       "another: classes[0].gateways[0].address\n"},
      // egressIPs
      {{{"/classes/0/egressIPs", nullptr}},
       "f: classes[0].egressIPs: required, but missing: gateway 192.0.2.21 has none of its own"},
      {{{"/classes/2/egressIPs", nullptr}},
       "f: classes[2].egressIPs: required, but missing: gateway 192.0.2.22 has none of its own"},
      {{{"/classes/0/egressIPs", "[]"}}, "f: classes[0].egressIPs: []: must not be empty"},
      {{{"/classes/2/gateways/1/egressIPs", "[]"}}, "f: classes[2].gateways[1].egressIPs: []: must not be empty"},
      {{{"/classes/0/egressIPs", "\"203.0.113.7\""}}, "f: classes[0].egressIPs: \"203.0.113.7\": must be an array"},
      {{{"/classes/0/egressIPs/0", "7"}}, "f: classes[0].egressIPs[0]: 7: must be a text"},
      {{{"/classes/2/gateways/1/egressIPs/0", "\"x\""}},
       "f: classes[2].gateways[1].egressIPs[0]: \"x\": must be an IP address"},
      {{{"/classes/0/egressIPs/0", "\"203.0.113.7/32\""}},
       "f: classes[0].egressIPs[0]: \"203.0.113.7/32\": must be an IP address"},
      {{{"/classes/0/egressIPs/0", "\"2001:db8:1::7/128\""}},
       "f: classes[0].egressIPs[0]: \"2001:db8:1::7/128\": must be an IP address"},
      {{{"/classes/0/egressIPs", "[\"203.0.113.7\",\"203.0.113.7\"]"}},
       "f: classes[0].egressIPs[1]: \"203.0.113.7\": is in this list already"},
      {{{"/classes/2/gateways/1/egressIPs/1", "\"2001:DB8:1:0::7\""}},
       "f: classes[2].gateways[1].egressIPs[1]: \"2001:DB8:1:0::7\": is in this list already"},
      {{{"/classes/0/egressIPs/0", "\"10.244.3.4\""}},
       "f: classes[0].egressIPs[0]: \"10.244.3.4\": is in \"clusterCIDRs\" 10.244.0.0/16: a pod may use it"},
      {{{"/classes/0/egressIPs/0", "\"fd00:244::7\""}},
       "f: classes[0].egressIPs[0]: \"fd00:244::7\": is in \"clusterCIDRs\" fd00:244::/48: a pod may use it"},
      {{{"/classes/2/gateways/1/egressIPs/1", "\"10.111.0.1\""}},
       "f: classes[2].gateways[1].egressIPs[1]: \"10.111.0.1\": is in \"clusterCIDRs\" 10.96.0.0/12: a pod may use"},
      {{{"/classes/0/egressIPs/0", "\"192.0.2.22\""}},
       "f: classes[0].egressIPs[0]: \"192.0.2.22\": is in \"nodes\" 192.0.2.22/32: a node uses it"},
      {{{"/classes/0/egressIPs/0", "\"2001:db8::7\""}},
       "f: classes[0].egressIPs[0]: \"2001:db8::7\": is in \"nodes\" 2001:db8::/64: a node uses it"},
      {{{"/classes/0/egressIPs/0", "\"192.0.2.254\""}},  // of a class behind it
       "f: classes[0].egressIPs[0]: \"192.0.2.254\": is the address of a gateway, classes[2].gateways[3].address: that "
       "machine uses it"},
      {{{"/classes/2/gateways/3/address", "\"2001:db8:9::1\""}, {"/classes/0/egressIPs/0", "\"2001:db8:9::1\""}},
       "f: classes[0].egressIPs[0]: \"2001:db8:9::1\": is the address of a gateway, classes[2].gateways[3].address"},
      {{{"/nodes", nullptr}, {"/classes/0/egressIPs/0", "\"192.0.2.22\""}},
       "f: classes[0].egressIPs[0]: \"192.0.2.22\": is the address of a gateway, classes[1].gateways[0].address"},
      // mark, vni
      {{{"/classes/0/mark", "0"}}, "f: classes[0].mark: 0: must not be 0"},
      {{{"/classes/0/mark", "\"3\""}}, "f: classes[0].mark: \"3\": must be 32 bits"},
      {{{"/classes/0/mark", "\"0x80\""}}, "f: classes[0].mark: \"0x80\": has bits outside of \"markMask\" 0x1f7f"},
      {{{"/classes/0/mark", "\"0x1f7f\""}}, "f: classes[0].mark: \"0x1f7f\": is reserved"},
      {{{"/classes/0/mark", "\"0x1000\""}}, "f: classes[0].mark: \"0x1000\": is reserved"},
      {{{"/classes/0/mark", "\"0x1001\""}}, "f: classes[0].mark: \"0x1001\": is reserved"},
      {{{"/classes/0/mark", "\"0xf7f\""}}, "f: classes[0].mark: \"0xf7f\": is reserved"},
      {{{"/classes/0/mark", "\"0xf7e\""}}, "f: classes[0].mark: \"0xf7e\": is reserved"},
      {{{"/classes/0/mark", "\"0xf7c\""}}, "f: classes[0].mark: \"0xf7c\": is reserved"},
      {{{"/classes/0/mark", "\"0xf7d\""}}, "f: classes[0].mark: \"0xf7d\": is reserved"},
      {{{"/classes/1/mark", "3"}}, "f: classes[1].mark: 3: overlaps the mark of class \"billing\""},
      {{{"/classes/0/vni", "0"}}, "f: classes[0].vni: 0: must be a number from 1 to 16777214"},
      {{{"/classes/0/vni", "16777215"}}, "f: classes[0].vni: 16777215: must be a number from 1 to 16777214"},
      {{{"/classes/1/vni", "77"}},
       "f: classes[1].vni: 77: class \"other\" would have the VNI 77 of class \"billing\": set another \"vni\""},
  };
  for (const auto& [changes, problem] : cases) {
    const std::string problems = problems_of(changed(changes));
    EXPECT_NE(('\n' + problems).find(std::string("\n") + problem), std::string::npos)
        << "expected: " << problem << "\ngot: " << problems;
  }
}

TEST(Config, RefusesAddressesThatNoMachineCanHave) {
  const std::vector<std::pair<const char*, const char*>> addresses = {
      {"0.0.0.0", "an unspecified"},
      {"0.1.2.3", "an unspecified"},
      {"127.0.0.1", "a loopback"},
      {"127.255.255.255", "a loopback"},
      {"169.254.1.1", "a link-local"},
      {"169.254.255.255", "a link-local"},
      {"224.0.0.1", "a multicast"},
      {"239.255.255.255", "a multicast"},
      {"240.0.0.1", "a reserved"},
      {"255.255.255.255", "a reserved"},
      {"::", "an unspecified"},
      {"0:0::0", "an unspecified"},
      {"::1", "a loopback"},
      {"fe80::1", "a link-local"},
      {"FEBF:ffff::1", "a link-local"},
      {"ff00::", "a multicast"},
      {"ff02::1", "a multicast"},
  };
  const char* next_hop = R"([{"address":"192.0.2.254","via":"nexthop"}])";
  for (const auto& [address, what] : addresses) {
    const std::string value = '"' + std::string(address) + '"';
    const std::string reason = value + ": is " + what + " address\n";
    EXPECT_EQ(problems_of(changed({{"/classes/0/egressIPs/0", value.c_str()}})),
              "f: classes[0].egressIPs[0]: " + reason);
    EXPECT_EQ(problems_of(changed({{"/classes/2/gateways/1/egressIPs/1", value.c_str()}})),
              "f: classes[2].gateways[1].egressIPs[1]: " + reason);
    EXPECT_EQ(problems_of(changed({{"/classes/0/gateways/0/address", value.c_str()}})),
              "f: classes[0].gateways[0].address: " + reason);
    EXPECT_EQ(problems_of(changed({{"/classes/0/egressIPs", nullptr},
                                   {"/classes/0/gateways", next_hop},
                                   {"/classes/0/gateways/0/address", value.c_str()}})),
              "f: classes[0].gateways[0].address: " + reason);
  }
  for (const char* address : {"1.0.0.0", "126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.1",
                              "223.255.255.255", "::2", "fe7f::1", "fec0::1", "feff::1", "2001:db8:1::7"})
    EXPECT_EQ(problems_of(changed({{"/classes/0/egressIPs/0", ('"' + std::string(address) + '"').c_str()},
                                   {"/classes/2/gateways/1/egressIPs/0", "\"203.0.113.99\""}})),
              "")
        << address;
}

TEST(Config, ABadPortRuleNeverWidensToAll) {
  for (const char* ports : {"[]", "null", "[\"\"]", "[\"ANY\"]", "[\"tcp/443\",\"any\"]", "[\"tcp/0-65535\"]", "{}"})
    for (const char* path : {"/classes/2/ports", "/classes/2/destinations/1/ports", "/classes/0/ports"})
      EXPECT_NE(problems_of(changed({{path, ports}})), "") << path << ' ' << ports;
}

TEST(Config, ReportsOneMistakeOnce) {
  for (const Change& change : std::vector<Change>{{"/markMask", "\"0x11\""},
                                                  {"/markMask", "true"},
                                                  {"/nodes", nullptr},
                                                  {"/nodes", "[]"},
                                                  {"/classes/0/name", "\"A\""},
                                                  {"/classes/1/name", "\"billing\""},
                                                  {"/classes/0/gateways", "{}"},
                                                  {"/classes/0/gateways/0/address", "\"gw\""},
                                                  {"/classes/0/gateways/0/address", "\"192.0.2.99\""},
                                                  {"/classes/0/gateways/0/via", "\"x\""},
                                                  {"/classes/0/egressIPs", "[]"},
                                                  {"/classes/0/egressIPs/0", "\"::1\""},
                                                  {"/classes/0/egressIPs/0", "\"192.0.2.22\""},
                                                  {"/classes/2/egressIPs", nullptr},
                                                  {"/classes/2/gateways/1/egressIPs", "[]"},
                                                  {"/classes/2/ports/0", "\"tcp/0\""},
                                                  {"/classes/2/destinations/1/ports/0", "\"tcp/0\""},
                                                  {"/classes/2/destinations/1", "{}"},
                                                  {"/classes/2/destinations/1/cidr", "\"x\""},
                                                  {"/classes/0/except/0", "\"::/0\""},
                                                  {"/classes/0/select/0", "{}"},
                                                  {"/clusterCIDRs/0", "\"10.244.0.1\""}}) {
    const std::string problems = problems_of(changed({change}));
    EXPECT_EQ(std::count(problems.begin(), problems.end(), '\n'), 1) << problems;
  }
}

TEST(Config, DoesNotBlameAnEgressIpForAGatewayThatIsNone) {
  EXPECT_EQ(problems_of(changed({{"/classes/0/gateways/0/address", "\"gw\""},
                                 {"/classes/1/gateways/0/address", "\"gw\""},
                                 {"/classes/1/egressIPs/0", "\"203.0.113.7\""}})),
            "f: classes[0].gateways[0].address: \"gw\": must be an IP address\n"
            "f: classes[1].gateways[0].address: \"gw\": must be an IP address\n");
  EXPECT_EQ(problems_of(
                changed({{"/classes/0/gateways/0/address", "\"gw\""}, {"/classes/1/egressIPs/0", "\"203.0.113.7\""}})),
            "f: classes[0].gateways[0].address: \"gw\": must be an IP address\n");
}

TEST(Config, ReportsAllMistakesNotOnlyTheFirst) {
  const std::string problems =
      problems_of(changed({{"/tunnel/port", "0"}, {"/classes/0/name", "\"A\""}, {"/classes/1/mark", "0"}}));
  EXPECT_EQ(std::count(problems.begin(), problems.end(), '\n'), 3) << problems;
}

TEST(Config, GivesEachNameTheSameVniForEver) {
  // Nodes agree on a class's VNI by this hash alone: other numbers would cut running fleets in two.
  EXPECT_EQ(valid({{"/classes/0/vni", nullptr}}).classes[0].vni, 7340189U);
  EXPECT_EQ(valid().classes[1].vni, 8228157U);
}

TEST(Config, NamesBothClassesWhoseVnisMeet) {
  const std::string meets =
      "class \"other\" would have the VNI 8228157 of class \"billing\": set another \"vni\" on one";
  EXPECT_EQ(problems_of(changed({{"/classes/0/vni", "8228157"}})).find("f: classes[1].name: \"other\": " + meets), 0U);
  EXPECT_EQ(problems_of(changed({{"/classes/0/vni", nullptr}, {"/classes/1/vni", "7340189"}}))
                .find("f: classes[1].vni: 7340189: class \"other\" would have the VNI 7340189 of class \"billing\""),
            0U);
  const std::vector<Change> same_hash = {
      {"/classes/0/vni", nullptr}, {"/classes/0/name", "\"c2896\""}, {"/classes/1/name", "\"c12266\""}};
  EXPECT_EQ(problems_of(changed(same_hash))
                .find("f: classes[1].name: \"c12266\": class \"c12266\" would have the VNI 6978616 of class \"c2896\""),
            0U);
}

TEST(Config, RefusesMoreClassesThanTheMaskHasRoomFor) {
  const auto text = [](int count) {
    Json json = *parse_json(kValid);
    Json one = json["classes"][1];
    one.erase("default");
    json["markMask"] = 15;
    json["classes"] = Json::array();
    for (int i = 0; i < count; ++i) {
      one["name"] = "c" + std::to_string(i);
      json["classes"].push_back(one);
    }
    return json.dump();
  };
  EXPECT_EQ(problems_of(text(3)), "");
  EXPECT_NE(problems_of(text(4)).find("has 4 classes, and \"markMask\" 0xf has room for 3"), std::string::npos);
}

TEST(Config, RefusesMoreThanAnyFileNeeds) {
  const auto prefixes = [](std::size_t count) {
    Json json = {{"classes", Json::array()}, {"clusterCIDRs", Json::array()}};
    for (std::size_t i = 0; i < count; ++i) json["clusterCIDRs"].push_back(0);
    return json.dump();
  };
  EXPECT_EQ(problems_of(prefixes(400001)), "f: clusterCIDRs: array: must not have more than 400000 entries\n");
  EXPECT_EQ(problems_of(prefixes(400000)).find("more than"), std::string::npos);

  Json keys = {{"classes", Json::array()}};
  for (int i = 1; i < 1000; ++i) keys["key" + std::to_string(i)] = 0;
  EXPECT_EQ(problems_of(keys.dump()).find("too many"), std::string::npos);
  keys["one more"] = 0;
  EXPECT_EQ(problems_of(keys.dump()), "f: object: has too many keys\n");
}

TEST(Config, NamesThePlaceOfBrokenJson) {
  EXPECT_EQ(problems_of("{\n  \"classes\": [,]\n}").substr(0, 22), "f: line 2, column 15: ");
  EXPECT_NE(problems_of("").find("unexpected end of input"), std::string::npos);
  EXPECT_NE(problems_of(std::string(100000, '[')).find("nested deeper"), std::string::npos);
}

TEST(Config, RefusesADocumentThatIsNoObject) {
  EXPECT_EQ(problems_of("[]"), "f: []: must be an object\n");
  EXPECT_EQ(problems_of("null"), "f: null: must be an object\n");
}

TEST(Config, RefusesDuplicateKeys) {
  EXPECT_EQ(problems_of(R"({"classes":[],"classes":[]})"), "f: classes: the key is there twice\n");
  EXPECT_EQ(problems_of(R"({"classes":[],"tunnel":{"port":1,"port":2}})"), "f: tunnel.port: the key is there twice\n");
}

TEST(Config, ShowsHostileValuesShortAndPrintable) {
  const std::string key(1U << 20U, 'k');
  const std::string problems =
      problems_of("{\"classes\":[],\"" + key + "\":\"\\u001b[2J" + key + "\",\"\xc3\xa9\\n\":{}}");
  EXPECT_LT(problems.size(), 500U);
  EXPECT_EQ(std::count(problems.begin(), problems.end(), '\n'), 2);
  for (const char c : problems) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~'));
}

TEST(Config, ForgetsTheProblemsOfAnEarlierFile) {
  std::vector<ConfigProblem> problems = {{"old", "", ""}};
  EXPECT_TRUE(parse_config(R"({"classes":[]})", &problems));
  EXPECT_TRUE(problems.empty());
}

}  // namespace
}  // namespace egressclass
