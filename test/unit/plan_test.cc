// SPDX-License-Identifier: Apache-2.0
#include "core/plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/mark.h"

namespace egressclass {
namespace {

Ip ip(const std::string& text) { return *Ip::parse(text); }

Prefix prefix(const char* text) {
  std::string why;
  return *Prefix::parse(text, true, &why);
}

Gateway gateway(const char* address, const std::vector<std::string>& egress_ips = {}) {
  Gateway g;
  g.address = ip(address);
  for (const std::string& egress_ip : egress_ips) g.egress_ips.push_back(ip(egress_ip));
  return g;
}

Gateway next_hop(const char* address, const std::string& interface = "") {
  Gateway g;
  g.address = ip(address);
  g.via = Via::kNextHop;
  g.interface = interface;
  return g;
}

ClassConfig a_class(const std::string& name, std::uint32_t vni, std::vector<Gateway> gateways) {
  ClassConfig c;
  c.name = name;
  c.vni = vni;
  c.gateways = std::move(gateways);
  c.destinations = {{prefix("0.0.0.0/0"), {}}, {prefix("::/0"), {}}};
  return c;
}

ClassConfig a_class(const std::string& name, std::uint32_t vni, const char* egress_ip = "203.0.113.7") {
  return a_class(name, vni, {gateway("192.0.2.21", {egress_ip})});
}

Config a_config(std::vector<ClassConfig> classes) {
  Config config;
  config.classes = std::move(classes);
  config.cluster_cidrs = {prefix("10.244.0.0/16"), prefix("fd00:244::/48")};
  config.nodes = {prefix("192.0.2.11"),   prefix("192.0.2.21"),   prefix("192.0.2.22"),
                  prefix("2001:db8::11"), prefix("2001:db8::21"), prefix("2001:db8::22")};
  return config;
}

/// Of a machine with one uplink, eth0, and addresses in a /24 and a /64 there.
NodeFacts facts_of(const std::vector<const char*>& addresses) {
  NodeFacts facts;
  facts.addresses = {{1, ip("127.0.0.1"), 104}, {1, ip("::1"), 128}};
  for (const char* address : addresses) facts.addresses.push_back({2, ip(address), ip(address).is_v4() ? 120U : 64U});
  facts.interfaces = {{"lo", 1}, {"eth0", 2}};
  return facts;
}

NodeFacts facts_of(const char* address) { return facts_of(std::vector<const char*>{address}); }

Plan plan_of(const Config& config, const NodeFacts& facts) {
  std::vector<ConfigProblem> problems;
  auto plan = make_plan(config, facts, &problems);
  EXPECT_TRUE(plan) << format_problems("f", problems);
  return plan.value_or(Plan{});
}

/// Why there is no plan.
std::string refusal(const Config& config, const NodeFacts& facts) {
  std::vector<ConfigProblem> problems;
  EXPECT_FALSE(make_plan(config, facts, &problems));
  return format_problems("f", problems);
}

/// Plans anew as the same node, which remembers what it has.
Plan plan_next(const Config& config, NodeFacts facts, const Plan& before) {
  facts.previous = before.applied;
  return plan_of(config, facts);
}

std::uint32_t id_of(const Plan& plan, const std::string& name) { return plan.applied.ids.at(name); }

std::uint32_t slot_of(const Plan& plan, const std::string& name, const char* egress_ip) {
  return plan.applied.slots.at({name, ip(egress_ip)});
}

/// The only class's gateways as this node reaches them, as "tunnel 192.0.2.21 4".
std::vector<std::string> hops_of(const Plan& plan) {
  std::vector<std::string> texts;
  for (const PlannedHop& hop : plan.classes.at(0).hops) {
    const char* path = hop.path == Path::kLocal ? "local " : hop.path == Path::kTunnel ? "tunnel " : "nexthop ";
    std::string text = path + hop.address.str() + (hop.v4 || hop.v6 ? " " : "");
    text += std::string(hop.v4 ? "4" : "") + (hop.v6 ? "6" : "");
    if (hop.ifindex != 0) text += " by " + std::to_string(hop.ifindex);
    texts.push_back(text);
  }
  return texts;
}

/// The only class's egress IPs here, as "203.0.113.7 1 on 2": its id and the interface.
std::vector<std::string> slots_of(const Plan& plan) {
  std::vector<std::string> texts;
  for (const PlannedSlot& slot : plan.classes.at(0).slots)
    texts.push_back(slot.ip.str() + ' ' + std::to_string(slot.id) + " on " + std::to_string(slot.ifindex));
  return texts;
}

using Texts = std::vector<std::string>;

TEST(Plan, ANodeFindsItsRoleByItsAddresses) {
  const Config config = a_config({a_class("billing", 5)});
  const Plan worker = plan_of(config, facts_of("192.0.2.11"));
  EXPECT_EQ(hops_of(worker), Texts{"tunnel 192.0.2.21 4"});
  EXPECT_TRUE(worker.classes[0].slots.empty());
  EXPECT_TRUE(worker.applied.slots.empty());
  const Plan gateway = plan_of(config, facts_of("192.0.2.21"));
  EXPECT_EQ(hops_of(gateway), Texts{"local 192.0.2.21 4"});
  EXPECT_EQ(slots_of(gateway), Texts{"203.0.113.7 1 on 2"});
}

TEST(Plan, ANodeFindsItsRoleByItsIpv6AddressesToo) {
  const Config config = a_config({a_class("billing", 5, {gateway("2001:db8::21", {"2001:db8:1::7"})})});
  const Plan worker = plan_of(config, facts_of("2001:db8::11"));
  EXPECT_EQ(hops_of(worker), Texts{"tunnel 2001:db8::21 6"});
  const Plan gateway = plan_of(config, facts_of("2001:db8::21"));
  EXPECT_EQ(hops_of(gateway), Texts{"local 2001:db8::21 6"});
  EXPECT_EQ(slots_of(gateway), Texts{"2001:db8:1::7 1 on 2"});
}

TEST(Plan, AClassIsPassedOnAsItIs) {
  ClassConfig c = a_class("billing", 5);
  c.destinations = {{prefix("198.51.100.0/24"), {*[] {
                       std::string why;
                       return PortRule::parse("tcp/443", &why);
                     }()}}};
  c.except = {prefix("198.51.100.7")};
  const Plan plain = plan_of(a_config({c}), facts_of("192.0.2.11"));
  EXPECT_EQ(plain.classes[0].name, "billing");
  EXPECT_EQ(plain.classes[0].vni, 5U);
  EXPECT_EQ(plain.classes[0].destinations, c.destinations);
  EXPECT_EQ(plain.classes[0].except, c.except);
  EXPECT_FALSE(plain.classes[0].otherwise_drop);
  EXPECT_FALSE(plain.classes[0].other_family_bypass);
  EXPECT_FALSE(plain.classes[0].spread_flows);
  EXPECT_TRUE(plain.classes[0].keep_flows);
  EXPECT_FALSE(plain.classes[0].force);
  const auto changed_of = [&](const auto& change) {
    ClassConfig changed = c;
    change(changed);
    return plan_of(a_config({changed}), facts_of("192.0.2.11")).classes[0];
  };
  EXPECT_TRUE(changed_of([](ClassConfig& changed) { changed.otherwise_drop = true; }).otherwise_drop);
  EXPECT_TRUE(changed_of([](ClassConfig& changed) { changed.other_family_bypass = true; }).other_family_bypass);
  EXPECT_TRUE(changed_of([](ClassConfig& changed) { changed.spread_flows = true; }).spread_flows);
  EXPECT_FALSE(changed_of([](ClassConfig& changed) { changed.keep_flows = false; }).keep_flows);
  EXPECT_TRUE(changed_of([](ClassConfig& changed) { changed.force = true; }).force);
}

TEST(Plan, TheTopOfTheFileIsPassedOn) {
  Config config = a_config({a_class("billing", 5)});
  config.tunnel_port = 4789;
  config.mark_mask = 0x1f0;
  config.annotations = false;
  const Plan plan = plan_of(config, facts_of("192.0.2.11"));
  EXPECT_EQ(plan.tunnel_port, 4789);
  EXPECT_EQ(plan.mark_mask, 0x1f0U);
  EXPECT_EQ(plan.applied.selection.mark_mask, 0x1f0U);
  EXPECT_FALSE(plan.applied.selection.annotations);
}

// --- gateways ----------------------------------------------------------------------------------------------------

TEST(Plan, EachGatewayHasAPathOfItsOwn) {
  const Config config = a_config(
      {a_class("billing", 5,
               {gateway("192.0.2.21", {"203.0.113.7"}), gateway("2001:db8::22", {"203.0.113.8", "2001:db8:1::8"}),
                next_hop("192.0.2.254"), gateway("192.0.2.22")})});
  NodeFacts facts = facts_of({"192.0.2.21", "2001:db8::21"});
  EXPECT_EQ(hops_of(plan_of(config, facts)),
            (Texts{"local 192.0.2.21 4", "tunnel 2001:db8::22 46", "nexthop 192.0.2.254 4 by 2", "tunnel 192.0.2.22"}));
  EXPECT_EQ(slots_of(plan_of(config, facts)), Texts{"203.0.113.7 1 on 2"});
  facts = facts_of({"192.0.2.22", "2001:db8::22"});  // both addresses are its own
  EXPECT_EQ(hops_of(plan_of(config, facts)),
            (Texts{"tunnel 192.0.2.21 4", "local 2001:db8::22 46", "nexthop 192.0.2.254 4 by 2", "local 192.0.2.22"}));
  EXPECT_EQ(slots_of(plan_of(config, facts)), (Texts{"203.0.113.8 1 on 2", "2001:db8:1::8 1 on 2"}));
}

TEST(Plan, ANextHopIsReachedByTheInterfaceOnWhoseSubnetItIs) {
  NodeFacts facts = facts_of({"192.0.2.11", "2001:db8::11"});
  facts.addresses.push_back({3, ip("198.51.100.2"), 120});
  facts.addresses.push_back({4, ip("2001:db8:9::2"), 64});
  const auto by = [&](const char* address) {
    return hops_of(plan_of(a_config({a_class("a", 1, {next_hop(address)})}), facts)).at(0);
  };
  EXPECT_EQ(by("192.0.2.254"), "nexthop 192.0.2.254 4 by 2");
  EXPECT_EQ(by("198.51.100.1"), "nexthop 198.51.100.1 4 by 3");
  EXPECT_EQ(by("2001:db8::fe"), "nexthop 2001:db8::fe 6 by 2");
  EXPECT_EQ(by("2001:db8:9::fe"), "nexthop 2001:db8:9::fe 6 by 4");
}

TEST(Plan, TheNarrowestSubnetCounts) {
  NodeFacts facts = facts_of({"192.0.2.11", "2001:db8::11"});
  for (const bool narrow_first : {true, false}) {
    NodeFacts both = facts;
    const std::vector<NodeFacts::Address> narrow = {{3, ip("198.51.100.2"), 125}, {3, ip("2001:db8:9::2"), 112}};
    const std::vector<NodeFacts::Address> wide = {{4, ip("198.51.100.130"), 120}, {4, ip("2001:db8:9:0:8::2"), 64}};
    for (const auto& addresses : narrow_first ? std::vector{narrow, wide} : std::vector{wide, narrow})
      both.addresses.insert(both.addresses.end(), addresses.begin(), addresses.end());
    const auto by = [&](const char* address) {
      return plan_of(a_config({a_class("a", 1, {next_hop(address)})}), both).classes[0].hops[0].ifindex;
    };
    EXPECT_EQ(by("198.51.100.1"), 3);
    EXPECT_EQ(by("198.51.100.9"), 4);
    EXPECT_EQ(by("2001:db8:9::fe"), 3);
    EXPECT_EQ(by("2001:db8:9::1:0"), 4);
  }
}

TEST(Plan, AnAddressWithoutASubnetLeadsNowhere) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.addresses.push_back({3, ip("198.51.100.1"), 128});
  facts.addresses.push_back({3, ip("198.51.100.2"), 96});
  facts.addresses.push_back({3, ip("2001:db8:9::1"), 0});
  for (const char* address : {"198.51.100.254", "2001:db8:9::fe"})
    EXPECT_EQ(refusal(a_config({a_class("a", 1, {next_hop(address)})}), facts),
              "f: classes[0].gateways[0].address: \"" + std::string(address) +
                  "\": no interface of this node is on the next hop's network: set \"interface\"\n");
}

TEST(Plan, ANextHopIsReachedByTheNamedInterface) {
  NodeFacts facts = facts_of({"192.0.2.11", "2001:db8::11"});
  facts.interfaces["eth7"] = 7;
  for (const char* address : {"192.0.2.254", "198.51.100.1", "2001:db8::fe", "2001:db8:9::fe"})
    EXPECT_EQ(plan_of(a_config({a_class("a", 1, {next_hop(address, "eth7")})}), facts).classes[0].hops[0].ifindex, 7);
  EXPECT_EQ(refusal(a_config({a_class("a", 1, {next_hop("192.0.2.254", "eth8")})}), facts),
            "f: classes[0].gateways[0].interface: \"eth8\": this node has no such interface\n");
  EXPECT_EQ(refusal(a_config({a_class("a", 1, {next_hop("2001:db8:9::fe", "eth8")})}), facts),
            "f: classes[0].gateways[0].interface: \"eth8\": this node has no such interface\n");
}

TEST(Plan, ANodeIsNotItsOwnNextHop) {
  for (const char* address : {"192.0.2.11", "2001:db8::11"})
    EXPECT_EQ(refusal(a_config({a_class("a", 1), a_class("b", 2, {gateway("192.0.2.21"), next_hop(address)})}),
                      facts_of({"192.0.2.11", "2001:db8::11"})),
              "f: classes[1].gateways[1].address: \"" + std::string(address) +
                  "\": this node itself has the next hop's address\n");
}

// --- underlay ----------------------------------------------------------------------------------------------------

TEST(Plan, TheUnderlayIsTheNodesAddressOfEachFamilyAmongTheNodes) {
  const Config config = a_config({a_class("billing", 5)});
  NodeFacts facts = facts_of({"192.0.2.99", "192.0.2.11"});  // the first one is no node's
  Plan plan = plan_of(config, facts);
  ASSERT_TRUE(plan.underlay4);
  EXPECT_EQ(plan.underlay4->ip, ip("192.0.2.11"));
  EXPECT_EQ(plan.underlay4->ifindex, 2);
  EXPECT_FALSE(plan.underlay6);
  facts.addresses.push_back({3, ip("2001:db8::99"), 64});
  facts.addresses.push_back({4, ip("2001:db8::11"), 64});
  plan = plan_of(config, facts);
  EXPECT_EQ(plan.underlay4->ip, ip("192.0.2.11"));
  ASSERT_TRUE(plan.underlay6);
  EXPECT_EQ(plan.underlay6->ip, ip("2001:db8::11"));
  EXPECT_EQ(plan.underlay6->ifindex, 4);
}

TEST(Plan, TheUnderlayOfAGatewayIsTheAddressThatTheWorkersWereTold) {
  Config config = a_config({a_class("a", 1, {gateway("192.0.2.22", {"203.0.113.9"})}),
                            a_class("b", 2, {next_hop("192.0.2.12"), gateway("192.0.2.21", {"203.0.113.7"})}),
                            a_class("c", 3, {gateway("2001:db8::21", {"203.0.113.8"})})});
  config.nodes = {prefix("192.0.2.0/24"), prefix("2001:db8::/64")};
  const Plan plan = plan_of(config, facts_of({"192.0.2.20", "192.0.2.21", "2001:db8::20", "2001:db8::21"}));
  EXPECT_EQ(plan.underlay4->ip, ip("192.0.2.21"));
  EXPECT_EQ(plan.underlay6->ip, ip("2001:db8::21"));
}

TEST(Plan, AnEgressIpOfBeforeIsNoUnderlay) {
  Config config = a_config({a_class("billing", 5)});
  config.nodes = {prefix("192.0.2.0/24"), prefix("2001:db8::/64")};
  NodeFacts facts = facts_of({"192.0.2.7", "192.0.2.11", "2001:db8::7", "2001:db8::11"});
  facts.held = {ip("192.0.2.7"), ip("2001:db8::7")};
  EXPECT_EQ(plan_of(config, facts).underlay4->ip, ip("192.0.2.11"));
  EXPECT_EQ(plan_of(config, facts).underlay6->ip, ip("2001:db8::11"));
}

TEST(Plan, AMachineThatIsNoNodeIsRefused) {
  EXPECT_EQ(refusal(a_config({a_class("billing", 5)}), facts_of({"192.0.2.99", "2001:db8::99"})),
            "f: nodes: no address of this node is among them\n");
  EXPECT_EQ(refusal(a_config({a_class("billing", 5, {next_hop("192.0.2.254")})}), facts_of("192.0.2.99")),
            "f: nodes: no address of this node is among them\n");
}

TEST(Plan, AWorkerNeedsAnAddressOfTheGatewaysFamily) {
  const Config config =
      a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7"})}),
                a_class("b", 2, {gateway("192.0.2.21", {"203.0.113.7"}), gateway("2001:db8::21", {"203.0.113.8"})})});
  EXPECT_EQ(refusal(config, facts_of("192.0.2.11")),
            "f: classes[1].gateways[1].address: \"2001:db8::21\": is an IPv6 address, and this node has none of that "
            "family among \"nodes\" to reach it from\n");
  const std::string needs_v4 =
      "is an IPv4 address, and this node has none of that family among \"nodes\" to reach it from\n";
  EXPECT_EQ(refusal(config, facts_of("2001:db8::11")),
            "f: classes[0].gateways[0].address: \"192.0.2.21\": " + needs_v4 +
                "f: classes[1].gateways[0].address: \"192.0.2.21\": " + needs_v4);
  plan_of(config, facts_of({"192.0.2.11", "2001:db8::11"}));
}

TEST(Plan, AGatewayAndANextHopNeedNoUnderlayOfTheOtherFamily) {
  plan_of(a_config({a_class("a", 1, {gateway("2001:db8::21", {"203.0.113.7"})})}), facts_of("2001:db8::21"));
  NodeFacts facts = facts_of("192.0.2.11");
  facts.addresses.push_back({2, ip("2001:db8:9::2"), 64});  // not among `nodes`
  plan_of(a_config({a_class("a", 1, {next_hop("2001:db8:9::fe")})}), facts);
}

TEST(Plan, WithoutClassesAnyMachineWillDo) {
  EXPECT_TRUE(plan_of(a_config({}), facts_of("192.0.2.99")).classes.empty());
}

TEST(Plan, ClusterNodesLocalAddressesEgressIpsAndNextHopsAreNeverSteered) {
  NodeFacts facts = facts_of({"192.0.2.11", "2001:db8::11"});
  facts.addresses.push_back({3, ip("198.51.100.3"), 120});
  const Plan plan = plan_of(a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7", "2001:db8:1::7"})}),
                                      a_class("b", 2, {next_hop("198.51.100.1"), next_hop("2001:db8::fe")})}),
                            facts);
  for (const char* never : {"10.244.0.0/16", "fd00:244::/48", "192.0.2.11", "192.0.2.21", "2001:db8::22", "127.0.0.1",
                            "::1", "198.51.100.3", "203.0.113.7", "2001:db8:1::7", "198.51.100.1", "2001:db8::fe"})
    EXPECT_TRUE(plan.never_steered.contains(prefix(never))) << never;
  EXPECT_EQ(plan.senders, (std::set<Prefix>{prefix("192.0.2.11"), prefix("192.0.2.21"), prefix("192.0.2.22"),
                                            prefix("2001:db8::11"), prefix("2001:db8::21"), prefix("2001:db8::22")}));
}

TEST(Plan, AnEgressIpThatIsToGoIsSteeredAsAnyOther) {
  NodeFacts facts = facts_of("192.0.2.21");
  for (const char* address : {"203.0.113.6", "203.0.113.7", "2001:db8:1::6"}) {
    facts.addresses.push_back({2, ip(address), 128});
    facts.held.insert(ip(address));
  }
  const Plan plan = plan_of(a_config({a_class("a", 1)}), facts);
  EXPECT_FALSE(plan.never_steered.contains(prefix("203.0.113.6")));
  EXPECT_FALSE(plan.never_steered.contains(prefix("2001:db8:1::6")));
  EXPECT_TRUE(plan.never_steered.contains(prefix("203.0.113.7")));  // still one
}

// --- ids and marks -----------------------------------------------------------------------------------------------

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
  EXPECT_EQ(refusal(a_config({fixed}), facts),
            "f: classes[0].mark: 1: running pods of class \"removed\" carry this mark\n");
}

TEST(Plan, TheMarkOfAClassWithRunningPodsCannotChange) {
  ClassConfig fixed = a_class("billing", 1);
  fixed.mark = 0x2;
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "billing"}};
  EXPECT_EQ(refusal(a_config({a_class("other", 2, "203.0.113.8"), fixed}), facts),
            "f: classes[1].mark: \"billing\": the mark of a class with running pods on this node cannot change\n");
}

TEST(Plan, TheMarkOfAClassThatAnotherOneIsToHaveCannotChangeEither) {
  ClassConfig thief = a_class("thief", 2, "203.0.113.8");
  thief.mark = 0x1;
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "billing"}};
  EXPECT_EQ(refusal(a_config({a_class("billing", 1), thief}), facts),
            "f: classes[1].mark: 1: running pods of class \"billing\" carry this mark\n"
            "f: classes[0].mark: \"billing\": the mark of a class with running pods on this node cannot change\n");
}

TEST(Plan, TheMarkOfAClassWithoutRunningPodsCanChange) {
  ClassConfig fixed = a_class("billing", 1);
  NodeFacts facts = facts_of("192.0.2.21");
  const Plan first = plan_of(a_config({fixed}), facts);
  fixed.mark = 0x2;
  const Plan second = plan_next(a_config({fixed}), facts, first);
  EXPECT_EQ(id_of(second, "billing"), 2U);
}

TEST(Plan, TheMaskInForceCannotChange) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.previous = plan_of(a_config({a_class("billing", 5)}), facts).applied;
  Config config = a_config({a_class("billing", 5)});
  config.mark_mask = 0xff;
  EXPECT_EQ(refusal(config, facts), "f: markMask: 255: differs from the one in force; run `egressctl down` first\n");
}

TEST(Plan, MoreClassesThanMarksAreRefused) {
  Config config = a_config({a_class("a", 1), a_class("b", 2)});
  config.mark_mask = 0xf;  // values 1 to 3 are for classes
  NodeFacts facts = facts_of("192.0.2.11");
  facts.attached = {{1, "x"}, {2, "y"}};
  EXPECT_EQ(refusal(config, facts),
            "f: classes[1]: \"b\": no mark is left for this class: widen markMask, or end the pods of removed "
            "classes\n");
}

// --- egress IPs --------------------------------------------------------------------------------------------------

TEST(Plan, TheFirstEgressIpOfEachFamilyHasTheClassesOwnMark) {
  const Config config = a_config({a_class("a", 1,
                                          {gateway("192.0.2.21", {"203.0.113.7", "203.0.113.8", "2001:db8:1::7",
                                                                  "2001:db8:1::8", "203.0.113.9"})}),
                                  a_class("b", 2, {gateway("192.0.2.21", {"2001:db8:1::7", "203.0.113.7"})})});
  const Plan plan = plan_of(config, facts_of("192.0.2.21"));
  EXPECT_EQ(slots_of(plan), (Texts{"203.0.113.7 1 on 2", "203.0.113.8 3 on 2", "2001:db8:1::7 1 on 2",
                                   "2001:db8:1::8 4 on 2", "203.0.113.9 5 on 2"}));
  EXPECT_EQ(slot_of(plan, "b", "2001:db8:1::7"), 2U);  // shared with another class: each has its own mark for it
  EXPECT_EQ(slot_of(plan, "b", "203.0.113.7"), 2U);
  EXPECT_EQ(plan.applied.slots.size(), 7U);
}

TEST(Plan, AnEgressIpLeavesByTheInterfaceOfItsOwnNetworkOrThatWasNamed) {
  NodeFacts facts = facts_of({"192.0.2.21", "2001:db8:2::21"});
  facts.addresses.push_back({3, ip("203.0.113.1"), 120});
  facts.interfaces["eth1"] = 3;
  const auto own_network = [&](const char* egress_ip, const char* interface) {
    Gateway by = gateway("192.0.2.21", {egress_ip});
    by.interface = interface;
    const Plan plan = plan_of(a_config({a_class("a", 1, {by})}), facts);
    const PlannedSlot& slot = plan.classes.at(0).slots.at(0);
    return std::pair(slot.ifindex, slot.own_network);
  };
  EXPECT_EQ(own_network("203.0.113.7", ""), std::pair(3, true));
  EXPECT_EQ(own_network("192.0.2.77", ""), std::pair(2, true));
  EXPECT_EQ(own_network("198.51.100.7", ""), std::pair(2, false)) << "of no network here: by the host's routes";
  EXPECT_EQ(own_network("198.51.100.7", "eth1"), std::pair(3, true));
}

TEST(Plan, AMarkOfMoreBitsThanTheGatewaysNamespaceHasForItIsRefused) {
  Config config = a_config({a_class("a", 1)});
  config.mark_mask = 0xffffffff;
  config.classes[0].mark = 0x40000000;
  EXPECT_EQ(refusal(config, facts_of("192.0.2.21")),
            "f: classes[0].mark: 1073741824: needs more than 30 bits of markMask: take a lower one\n");
  config.classes[0].mark = 0x3fffffff;
  plan_of(config, facts_of("192.0.2.21"));
}

TEST(Plan, EgressIpsTakeNoIdsOnWorkers) {
  const Config config = a_config(
      {a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7", "203.0.113.8"})}), a_class("b", 2, "203.0.113.9")});
  EXPECT_TRUE(plan_of(config, facts_of("192.0.2.11")).applied.slots.empty());
}

TEST(Plan, AnEgressIpKeepsItsIdWhenOthersComeAndGo) {
  const NodeFacts facts = facts_of("192.0.2.21");
  for (const std::string network : {"203.0.113.", "2001:db8:1::"}) {
    const auto with = [&](const std::vector<std::string>& hosts) {
      std::vector<std::string> ips = hosts;
      for (std::string& ip : ips) ip.insert(0, network);
      return a_config({a_class("a", 1, {gateway("192.0.2.21", ips)}), a_class("b", 2, {gateway("192.0.2.21")})});
    };
    const Plan first = plan_of(with({"7", "8", "9"}), facts);
    EXPECT_EQ(slots_of(first), (Texts{network + "7 1 on 2", network + "8 3 on 2", network + "9 4 on 2"}));
    const Plan turned = plan_next(with({"9", "8", "7"}), facts, first);
    EXPECT_EQ(slots_of(turned), (Texts{network + "9 4 on 2", network + "8 3 on 2", network + "7 1 on 2"}));
    // 7 goes: its mark, the class's own, is for the next new one; 3 and 4 stay where they are.
    const Plan without = plan_next(with({"8", "9"}), facts, first);
    EXPECT_EQ(slots_of(without), (Texts{network + "8 3 on 2", network + "9 4 on 2"}));
    const Plan with_new = plan_next(with({"8", "9", "10"}), facts, without);
    EXPECT_EQ(slots_of(with_new), (Texts{network + "8 3 on 2", network + "9 4 on 2", network + "10 1 on 2"}));
    // 8 goes and 10 comes: not by the id that meant 8 a moment ago.
    EXPECT_EQ(slots_of(plan_next(with({"7", "9", "10"}), facts, first)),
              (Texts{network + "7 1 on 2", network + "9 4 on 2", network + "10 5 on 2"}));
    // Later it may have that.
    const Plan later = plan_next(with({"7", "9"}), facts, first);
    EXPECT_EQ(slots_of(plan_next(with({"7", "9", "10"}), facts, later)),
              (Texts{network + "7 1 on 2", network + "9 4 on 2", network + "10 3 on 2"}));
  }
}

TEST(Plan, TheIdOfAnEgressIpIsForNoNewClassAMomentLater) {
  const NodeFacts facts = facts_of("192.0.2.21");
  const Plan first =
      plan_of(a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7", "203.0.113.8"})})}), facts);
  EXPECT_EQ(slot_of(first, "a", "203.0.113.8"), 2U);
  const Plan second = plan_next(a_config({a_class("a", 1), a_class("new", 2, "203.0.113.9")}), facts, first);
  EXPECT_EQ(id_of(second, "new"), 3U);
  const Plan third = plan_next(a_config({a_class("b", 3, "203.0.113.9")}), facts, first);  // nor the class's own
  EXPECT_EQ(id_of(third, "b"), 3U);
}

TEST(Plan, AnEgressIpGivesWayToAnExplicitMark) {
  const NodeFacts facts = facts_of("192.0.2.21");
  const ClassConfig a = a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7", "203.0.113.8"})});
  const Plan first = plan_of(a_config({a}), facts);
  ClassConfig fixed = a_class("fixed", 2, "203.0.113.9");
  fixed.mark = 0x2;
  const Plan second = plan_next(a_config({a, fixed}), facts, first);
  EXPECT_EQ(id_of(second, "fixed"), 2U);
  EXPECT_EQ(slot_of(second, "a", "203.0.113.8"), 3U);
}

TEST(Plan, EgressIpsTakeNoIdThatRunningPodsCarry) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.attached = {{2, "removed"}};
  EXPECT_EQ(
      slots_of(plan_of(a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7", "203.0.113.8"})})}), facts)),
      (Texts{"203.0.113.7 1 on 2", "203.0.113.8 3 on 2"}));
}

TEST(Plan, MoreEgressIpsThanMarksAreRefused) {
  Config config = a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.1", "203.0.113.2"})}),
                            a_class("b", 2, {gateway("192.0.2.21", {"203.0.113.3", "203.0.113.4"})})});
  config.mark_mask = 0xf;  // values 1 to 3 are for classes
  EXPECT_EQ(refusal(config, facts_of("192.0.2.21")),
            "f: classes[1]: \"b\": no mark is left for this class: widen markMask, or end the pods of removed "
            "classes\n");
  plan_of(config, facts_of("192.0.2.11"));  // a worker needs none for them
}

TEST(Plan, AMachineThatIsSeveralGatewaysOfAClassHasNoMoreEgressIpsThanOne) {
  for (const std::string network : {"203.0.113.", "2001:db8:1::"}) {
    const auto with = [&](int first, int second) {
      std::vector<std::string> ips;
      for (int i = 1; i <= first + second; ++i) ips.push_back(network + std::to_string(i));
      return a_config({a_class("a", 1,
                               {gateway("192.0.2.21", {ips.begin(), ips.begin() + first}),
                                gateway("2001:db8::21", {ips.begin() + first, ips.end()})})});
    };
    const NodeFacts facts = facts_of({"192.0.2.21", "2001:db8::21"});
    EXPECT_EQ(plan_of(with(4, 4), facts).classes[0].slots.size(), 8U);
    EXPECT_EQ(refusal(with(5, 4), facts),
              "f: classes[0].gateways: several of these addresses are this node's; together they have more than 8 "
              "egress IPs of a family\n");
  }
}

TEST(Plan, AnEgressIpThatAPodUsesIsRefused) {
  for (const char* address : {"203.0.113.7", "2001:db8:1::7"})
    for (const char* node : {"192.0.2.11", "192.0.2.21"}) {
      NodeFacts facts = facts_of(node);
      facts.pods = {{ip(address), "shop/web"}};
      EXPECT_EQ(refusal(a_config({a_class("a", 1, "203.0.113.9"), a_class("b", 2, address)}), facts),
                "f: classes[1].egressIPs: \"" + std::string(address) + "\": pod shop/web uses this address\n");
    }
}

TEST(Plan, AnEgressIpThatAWorkerHasIsRefused) {
  for (const char* address : {"203.0.113.7", "2001:db8:1::7"}) {
    NodeFacts facts = facts_of("192.0.2.11");
    facts.addresses.push_back({2, ip(address), 128});
    const Config config = a_config({a_class("billing", 5, address)});
    EXPECT_EQ(refusal(config, facts), "f: classes[0].egressIPs: \"" + std::string(address) +
                                          "\": this node uses the address, and is not the gateway 192.0.2.21 that it "
                                          "is for\n");
    facts.held = {ip(address)};  // by an earlier apply, when this node was the gateway
    plan_of(config, facts);
  }
}

TEST(Plan, AnEgressIpThatAnotherGatewayOfTheClassHasIsRefused) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({2, ip("203.0.113.8"), 128});
  const Config config =
      a_config({a_class("a", 1, {gateway("192.0.2.21", {"203.0.113.7"}), gateway("192.0.2.22", {"203.0.113.8"})})});
  EXPECT_EQ(refusal(config, facts),
            "f: classes[0].egressIPs: \"203.0.113.8\": this node uses the address, and is not the gateway 192.0.2.22 "
            "that it is "
            "for\n");
}

TEST(Plan, TheEgressIpGoesWhereItsSubnetIs) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({3, ip("203.0.113.2"), 120});
  facts.addresses.push_back({4, ip("2001:db8:1::2"), 64});
  const Config config = a_config(
      {a_class("a", 1, {gateway("192.0.2.21", {"2001:db8:1::7", "198.51.100.7", "203.0.113.7", "2001:db8:2::7"})})});
  EXPECT_EQ(slots_of(plan_of(config, facts)),
            (Texts{"2001:db8:1::7 1 on 4", "198.51.100.7 1 on 2", "203.0.113.7 2 on 3", "2001:db8:2::7 3 on 2"}));
}

TEST(Plan, WithoutASubnetTheEgressIpGoesToTheGatewaysUplink) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({3, ip("192.0.2.22"), 120});
  const auto on = [&](const char* address) {
    return slots_of(plan_of(a_config({a_class("a", 1, {gateway(address, {"203.0.113.7", "2001:db8:1::7"})})}), facts));
  };
  EXPECT_EQ(on("192.0.2.21"), (Texts{"203.0.113.7 1 on 2", "2001:db8:1::7 1 on 2"}));
  EXPECT_EQ(on("192.0.2.22"), (Texts{"203.0.113.7 1 on 3", "2001:db8:1::7 1 on 3"}));
}

TEST(Plan, AnEgressIpThatIsThereStaysOnItsInterface) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({5, ip("203.0.113.2"), 120});
  for (const char* address : {"203.0.113.7", "2001:db8:1::7"}) {
    NodeFacts present = facts;
    present.addresses.push_back({4, ip(address), 128});
    EXPECT_EQ(plan_of(a_config({a_class("a", 1, address)}), present).classes[0].slots[0].ifindex, 4);
  }
}

TEST(Plan, ANamedInterfaceIsTakenOrRefused) {
  ClassConfig c = a_class("billing", 5, {gateway("192.0.2.21", {"203.0.113.7", "2001:db8:1::7"})});
  c.gateways[0].interface = "lo";
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({3, ip("203.0.113.2"), 120});
  EXPECT_EQ(slots_of(plan_of(a_config({c}), facts)), (Texts{"203.0.113.7 1 on 1", "2001:db8:1::7 1 on 1"}));
  facts.addresses.push_back({3, ip("203.0.113.7"), 128});  // it moves there
  EXPECT_EQ(slots_of(plan_of(a_config({c}), facts)), (Texts{"203.0.113.7 1 on 1", "2001:db8:1::7 1 on 1"}));
  c.gateways[0].interface = "eth7";
  EXPECT_EQ(refusal(a_config({c}), facts),
            "f: classes[0].gateways[0].interface: \"eth7\": this node has no such interface\n");
  plan_of(a_config({c}), facts_of("192.0.2.11"));  // is the gateway's, not the worker's
}

TEST(Plan, WhatAnAddressOrAnInterfaceWouldMendPasses) {
  const auto passes = [](const Config& config, const NodeFacts& facts) {
    std::vector<ConfigProblem> problems;
    EXPECT_FALSE(make_plan(config, facts, &problems));
    return std::ranges::all_of(problems, &ConfigProblem::passes);
  };
  const Config far = a_config({a_class("a", 1, {gateway("2001:db8::21", {"203.0.113.7"})})});
  EXPECT_TRUE(passes(far, facts_of("192.0.2.99")));
  EXPECT_TRUE(passes(far, facts_of("192.0.2.11")));
  EXPECT_TRUE(passes(a_config({a_class("a", 1, {next_hop("198.51.100.1")})}), facts_of("192.0.2.11")));
  EXPECT_TRUE(passes(a_config({a_class("a", 1, {next_hop("192.0.2.254", "eth8")})}), facts_of("192.0.2.11")));
  EXPECT_FALSE(passes(a_config({a_class("a", 1, {next_hop("192.0.2.11")})}), facts_of("192.0.2.11")));
  NodeFacts facts = facts_of("192.0.2.99");
  facts.pods = {{ip("203.0.113.7"), "shop/web"}};
  EXPECT_FALSE(passes(far, facts));
}

TEST(Plan, AnEgressIpOfOursGoesToWhereItsNetworkIsNow) {
  NodeFacts facts = facts_of("192.0.2.21");
  facts.addresses.push_back({2, ip("203.0.113.7"), 128});
  facts.addresses.push_back({3, ip("203.0.113.2"), 120});
  EXPECT_EQ(slots_of(plan_of(a_config({a_class("a", 1)}), facts)), Texts{"203.0.113.7 1 on 2"});
  facts.held = {ip("203.0.113.7")};
  EXPECT_EQ(slots_of(plan_of(a_config({a_class("a", 1)}), facts)), Texts{"203.0.113.7 1 on 3"});
}

TEST(Plan, ReportsWhatIsWrongWithEachClass) {
  NodeFacts facts = facts_of("192.0.2.11");
  facts.pods = {{ip("203.0.113.7"), "shop/web"}};
  const std::string problems =
      refusal(a_config({a_class("a", 1), a_class("b", 2, {next_hop("198.51.100.1"), gateway("2001:db8::21")})}), facts);
  EXPECT_EQ(std::ranges::count(problems, '\n'), 3) << problems;
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

TEST(Applied, KeepsTheIdsOfEgressIps) {
  const Applied applied =
      plan_of(
          a_config({a_class("a", 1,
                            {gateway("192.0.2.21", {"203.0.113.7", "2001:db8:1::7", "203.0.113.8", "2001:db8:1::8"})}),
                    a_class("a-b", 2, "203.0.113.7")}),
          facts_of("192.0.2.21"))
          .applied;
  auto read = Applied::from_json(applied.to_json());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->slots, applied.slots);
  EXPECT_EQ(read->slots.size(), 5U);
  EXPECT_EQ(read->to_json(), applied.to_json());
}

/// A running pod of shop that has the class "a".
Attachment running(const Applied& applied, std::optional<std::string> annotation = std::nullopt) {
  Attachment attachment;
  attachment.pod = {"shop", "web-0", "uid-1", std::move(annotation)};
  attachment.class_name = "a";
  attachment.class_id = applied.ids.at("a");
  attachment.class_vni = 1;
  attachment.host_ifindex = 17;
  return attachment;
}

Applied applied_of(std::vector<ClassConfig> classes) {
  return plan_of(a_config(std::move(classes)), facts_of("192.0.2.11")).applied;
}

TEST(Reclassed, ARunningPodHasTheClassThatIsChosenForItNow) {
  ClassConfig selecting = a_class("b", 2);
  selecting.select = {{{"shop"}, {}}};
  const Applied applied = applied_of({a_class("a", 1), selecting});
  const Attachment before = running(applied);
  Attachment wanted = before;
  wanted.class_name = "b";
  wanted.class_id = applied.ids.at("b");
  wanted.class_vni = 2;
  EXPECT_NE(wanted.class_id, before.class_id);
  EXPECT_EQ(reclassed(applied, before), wanted);   // and all else as it was
  EXPECT_EQ(reclassed(applied, wanted), wanted);   // no change: nothing to do
  const Attachment named = running(applied, "a");  // the pod's own choice comes first
  EXPECT_EQ(reclassed(applied, named), named);
}

TEST(Reclassed, APodForWhichThereIsNoClassKeepsWhatItHas) {
  const Applied none_selects = applied_of({a_class("a", 1), a_class("b", 2)});
  EXPECT_EQ(reclassed(none_selects, running(none_selects)), running(none_selects));
  const Attachment of_a = running(none_selects);
  EXPECT_EQ(reclassed(applied_of({a_class("b", 2)}), of_a), of_a);  // removed: closed, by the class id that it has

  ClassConfig everyone = a_class("b", 2);
  everyone.is_default = true;
  const Applied has_default = applied_of({a_class("a", 1), everyone});
  const Attachment unknown = running(has_default, "gone");  // no other class than the one that it names
  EXPECT_EQ(reclassed(has_default, unknown), unknown);
  ClassConfig private_class = a_class("c", 3);
  private_class.entitled = {"crm"};
  const Applied has_private = applied_of({a_class("a", 1), everyone, private_class});
  const Attachment not_entitled = running(has_private, "c");
  EXPECT_EQ(reclassed(has_private, not_entitled), not_entitled);
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

TEST(Applied, EgressIpsAndIdsThatCannotBeAreAnError) {
  const auto with = [](const std::string& slots) {
    return R"({"annotations":true,"markMask":8063,"classes":[{"name":"a","id":1,"vni":5,"slots":)" + slots +
           R"(,"default":false,"namespaces":[],"select":[]}]})";
  };
  EXPECT_TRUE(Applied::from_json(with("{}")));
  for (const char* slots : {"[]", "7", "\"x\"", "[1]"}) EXPECT_FALSE(Applied::from_json(with(slots))) << slots;
  EXPECT_TRUE(Applied::from_json(with(R"({"203.0.113.7":1,"2001:db8::7":2043})")));
  for (const char* ip : {"", "x", "203.0.113.7/32", "::ffff:203.0.113.7", " ::1"})
    EXPECT_FALSE(Applied::from_json(with("{\"" + std::string(ip) + "\":1}"))) << ip;
  for (const char* id : {"0", "-1", "2044", "1.5", "null", "\"1\""})
    EXPECT_FALSE(Applied::from_json(with("{\"203.0.113.7\":" + std::string(id) + "}"))) << id;
}

}  // namespace
}  // namespace egressclass
