// SPDX-License-Identifier: Apache-2.0
#include "core/plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/mark.h"

namespace egressclass {
namespace {

Ip ip(const char* text) { return *Ip::parse(text); }

Prefix prefix(const char* text) {
  std::string why;
  return *Prefix::parse(text, true, &why);
}

ClassConfig a_class(const std::string& name, std::uint32_t vni, const char* egress_ip = "203.0.113.7") {
  ClassConfig c;
  c.name = name;
  c.vni = vni;
  c.gateway = ip("192.0.2.21");
  c.egress_ip = ip(egress_ip);
  c.destinations = {prefix("0.0.0.0/0")};
  return c;
}

Config a_config(std::vector<ClassConfig> classes) {
  Config config;
  config.classes = std::move(classes);
  config.cluster_cidrs = {prefix("10.244.0.0/16")};
  config.nodes = {prefix("192.0.2.11"), prefix("192.0.2.21")};
  return config;
}

NodeFacts facts_of(const char* address) {
  NodeFacts facts;
  facts.addresses = {{1, ip("127.0.0.1"), 104}, {2, ip(address), 120}};
  facts.interfaces = {{"lo", 1}, {"eth0", 2}};
  return facts;
}

Plan plan_of(const Config& config, const NodeFacts& facts) {
  std::vector<ConfigProblem> problems;
  auto plan = make_plan(config, facts, &problems);
  EXPECT_TRUE(plan) << format_problems("config", problems);
  return plan.value_or(Plan{});
}

/// The reasons for which there is no plan.
std::string refusal(const Config& config, const NodeFacts& facts) {
  std::vector<ConfigProblem> problems;
  EXPECT_FALSE(make_plan(config, facts, &problems));
  return format_problems("config", problems);
}

std::uint32_t id_of(const Plan& plan, const std::string& name) { return plan.applied.ids.at(name); }

TEST(Plan, ANodeFindsItsRoleByItsAddresses) {
  const Config config = a_config({a_class("billing", 5)});
  const Plan worker = plan_of(config, facts_of("192.0.2.11"));
  EXPECT_FALSE(worker.classes[0].local);
  EXPECT_EQ(worker.underlay, ip("192.0.2.11"));
  const Plan gateway = plan_of(config, facts_of("192.0.2.21"));
  EXPECT_TRUE(gateway.classes[0].local);
  EXPECT_EQ(gateway.underlay, ip("192.0.2.21"));
}

TEST(Plan, AMachineThatIsNoNodeIsRefused) {
  EXPECT_NE(refusal(a_config({a_class("billing", 5)}), facts_of("192.0.2.99")).find("no IPv4 address of this node"),
            std::string::npos);
}

TEST(Plan, WithoutClassesAnyMachineWillDo) {
  EXPECT_TRUE(plan_of(a_config({}), facts_of("192.0.2.99")).classes.empty());
}

TEST(Plan, ClusterNodesLocalAddressesAndEgressIpsAreNeverSteered) {
  const Plan plan = plan_of(a_config({a_class("billing", 5)}), facts_of("192.0.2.11"));
  for (const char* never : {"10.244.0.0/16", "192.0.2.11", "192.0.2.21", "127.0.0.1", "203.0.113.7"})
    EXPECT_TRUE(plan.never_steered.contains(prefix(never))) << never;
  EXPECT_EQ(plan.senders, (std::set<Prefix>{prefix("192.0.2.11"), prefix("192.0.2.21")}));
}

TEST(Plan, MarksAreIdsSpreadOverTheMask) {
  Config config = a_config({a_class("a", 1), a_class("b", 2)});
  config.mark_mask = 0x1f0;
  const Plan plan = plan_of(config, facts_of("192.0.2.11"));
  EXPECT_EQ(plan.classes[0].mark, 0x10U);
  EXPECT_EQ(plan.classes[1].mark, 0x20U);
}

TEST(Plan, AClassKeepsItsIdWhenOthersComeAndGo) {
  NodeFacts facts = facts_of("192.0.2.11");
  const Plan first = plan_of(a_config({a_class("a", 1), a_class("b", 2), a_class("c", 3)}), facts);
  facts.previous = first.applied;
  const Plan second = plan_of(a_config({a_class("new", 9), a_class("c", 3), a_class("b", 2)}), facts);
  EXPECT_EQ(id_of(second, "b"), id_of(first, "b"));
  EXPECT_EQ(id_of(second, "c"), id_of(first, "c"));
  EXPECT_EQ(id_of(second, "new"), id_of(first, "a"));  // free again: no pod carries it
}

TEST(Plan, AnIdThatRunningPodsCarryGoesToNoOtherClass) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "removed"}};
  EXPECT_EQ(id_of(plan_of(a_config({a_class("new", 9)}), facts), "new"), 2U);
}

TEST(Plan, WhatRunningPodsCarryCountsWhenTheStateFileIsGone) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{7, "billing"}};
  EXPECT_EQ(id_of(plan_of(a_config({a_class("billing", 5)}), facts), "billing"), 7U);
}

TEST(Plan, AnExplicitMarkIsTaken) {
  ClassConfig fixed = a_class("fixed", 1);
  fixed.mark = 0x1;
  const Plan plan = plan_of(a_config({a_class("other", 2), fixed}), facts_of("192.0.2.11"));
  EXPECT_EQ(id_of(plan, "fixed"), 1U);
  EXPECT_EQ(id_of(plan, "other"), 2U);
}

TEST(Plan, AnExplicitMarkOfAnotherClassesPodsIsRefused) {
  ClassConfig fixed = a_class("fixed", 1);
  fixed.mark = 0x1;
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "removed"}};
  EXPECT_NE(refusal(a_config({fixed}), facts).find("class \"removed\" carry this mark"), std::string::npos);
}

TEST(Plan, TheMarkOfAClassWithRunningPodsCannotChange) {
  ClassConfig fixed = a_class("billing", 1);
  fixed.mark = 0x2;
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "billing"}};
  EXPECT_NE(refusal(a_config({fixed}), facts).find("cannot change"), std::string::npos);
}

TEST(Plan, TheMaskInForceCannotChange) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.previous = plan_of(a_config({a_class("billing", 5)}), facts).applied;
  Config config = a_config({a_class("billing", 5)});
  config.mark_mask = 0xff;
  EXPECT_NE(refusal(config, facts).find("egressctl down"), std::string::npos);
}

TEST(Plan, MoreClassesThanMarksAreRefused) {
  Config config = a_config({a_class("a", 1), a_class("b", 2)});
  config.mark_mask = 0xf;  // values 1 to 3 are for classes
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "x"}, {2, "y"}};
  EXPECT_NE(refusal(config, facts).find("no mark is left"), std::string::npos);
}

TEST(Plan, AnEgressIpThatAPodUsesIsRefused) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.pods = {{ip("203.0.113.7"), "shop/web"}};
  EXPECT_NE(refusal(a_config({a_class("billing", 5)}), facts).find("pod shop/web uses"), std::string::npos);
}

TEST(Plan, AnEgressIpThatAWorkerHasIsRefused) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.addresses.push_back({2, ip("203.0.113.7"), 128});
  EXPECT_NE(refusal(a_config({a_class("billing", 5)}), facts).find("this node uses the address"), std::string::npos);
  facts.placed = {ip("203.0.113.7")};  // by an earlier apply, when this node was the gateway
  plan_of(a_config({a_class("billing", 5)}), facts);
}

TEST(Plan, TheEgressIpGoesWhereItsSubnetIs) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({3, ip("203.0.113.2"), 120});
  EXPECT_EQ(plan_of(a_config({a_class("billing", 5)}), facts).classes[0].egress_ifindex, 3);
}

TEST(Plan, WithoutASubnetTheEgressIpGoesToTheGatewaysUplink) {
  EXPECT_EQ(plan_of(a_config({a_class("billing", 5)}), facts_of("192.0.2.21")).classes[0].egress_ifindex, 2);
}

TEST(Plan, ANamedInterfaceIsTakenOrRefused) {
  ClassConfig c = a_class("billing", 5);
  c.interface = "lo";
  EXPECT_EQ(plan_of(a_config({c}), facts_of("192.0.2.21")).classes[0].egress_ifindex, 1);
  c.interface = "eth7";
  EXPECT_NE(refusal(a_config({c}), facts_of("192.0.2.21")).find("no such interface"), std::string::npos);
}

TEST(Applied, ComesBackFromItsFileAsItWent) {
  ClassConfig c = a_class("billing", 5);
  c.select = {{{"billing"}, {}}, {{"shop"}, {"checkout-*"}}};
  c.entitled = {"crm"};
  c.is_default = true;
  const Applied applied = plan_of(a_config({c}), facts_of("192.0.2.11")).applied;
  auto read = Applied::from_json(applied.to_json());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->to_json(), applied.to_json());
  EXPECT_EQ(read->ids.at("billing"), 1U);
  EXPECT_EQ(read->selection.classes[0].select[1].pods[0], "checkout-*");
}

TEST(Applied, ABrokenFileIsAnError) {
  for (const char* text : {"", "{", "[]", "{}", R"({"annotations":true,"markMask":1,"classes":[{}]})"})
    EXPECT_FALSE(Applied::from_json(text)) << text;
}

TEST(Applied, NumbersThatCannotBeAreAnError) {
  const auto with = [](const char* mask, const char* id) {
    return std::string(R"({"annotations":true,"markMask":)") + mask + R"(,"classes":[{"name":"a","id":)" + id +
           R"(,"vni":5,"default":false,"namespaces":[],"select":[]}]})";
  };
  EXPECT_TRUE(Applied::from_json(with("8063", "1")));  // also without an egress IP: of an older version
  for (const char* mask : {"1e300", "-5", "4.2", "4294967296", "\"8063\""})
    EXPECT_FALSE(Applied::from_json(with(mask, "1"))) << mask;
  for (const char* id : {"0", "-1", "2044", "1.5", "null"}) EXPECT_FALSE(Applied::from_json(with("8063", id))) << id;
}

}  // namespace
}  // namespace egressclass
