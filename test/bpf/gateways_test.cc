// SPDX-License-Identifier: Apache-2.0
// classify: which of several gateways a flow takes, and what becomes of it when they or the configuration change.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <map>
#include <set>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr unsigned kFlows = 1000;
constexpr unsigned kOften = 20;  // that many flows take no time, on an emulated processor too

using Choices = std::map<std::uint16_t, std::string>;  // of gateways, by source port
using Shares = std::map<std::string, unsigned>;        // flows, by gateway

Packet of_flow(std::uint16_t port) { return pod_sends(kOutside).udp(port, 443); }

/// A class with these gateways, each with an egress IP of its own; and whatever else.
std::string members(const std::vector<const char*>& gateways, const std::string& more,
                    const std::string& destinations = R"("0.0.0.0/0")") {
  std::string list;
  for (std::size_t i = 0; i < gateways.size(); ++i)
    list += std::string(i == 0 ? "" : ", ") + R"({"address": ")" + gateways[i] + R"(", "egressIPs": ["203.0.113.)" +
            std::string(gateways[i]).substr(std::string(gateways[i]).rfind('.') + 1) + R"("]})";
  return R"("gateways": [)" + list + R"(], "destinations": [)" + destinations + "]" + more;
}

const std::vector<const char*> kTwo = {kGateway, kGateway2};
const std::vector<const char*> kFour = {kGateway, kGateway2, kGateway3, kGateway4};
constexpr const char* kByFlow = R"(, "spread": "flow")";

class GatewaysTest : public DatapathTest {
 protected:
  std::string gateway_for(const Packet& packet) {
    if (++asked_ % kOften == 0) node_.keep_hearing_gateways();
    return node_.gateway_of(node_.classify(packet));
  }

  Choices choose(unsigned flows = kFlows) {
    Choices choices;
    for (unsigned i = 0; i < flows; ++i) {
      const auto port = static_cast<std::uint16_t>(10000 + i);
      choices[port] = gateway_for(of_flow(port));
    }
    return choices;
  }

  /// As if all flows had ended.
  void forget_flows() {
    for (unsigned i = 0; i < kFlows; ++i) {
      const ec_flow_key key = {.src = ec(kPod),
                               .dst = ec(kOutside),
                               .sport = htons(static_cast<std::uint16_t>(10000 + i)),
                               .dport = htons(443),
                               .proto = IPPROTO_UDP};
      if (node_.find<ec_flow>("flows", key)) node_.erase("flows", key);
    }
  }

  static Shares shares(const Choices& choices) {
    Shares shares;
    for (const auto& [port, gateway] : choices) ++shares[gateway];
    return shares;
  }

  static Choices moved(const Choices& before, const Choices& after) {
    Choices moved;
    for (const auto& [port, gateway] : before)
      if (after.at(port) != gateway) moved[port] = gateway;
    return moved;
  }

  /// Another pod of the class behind pod0.
  void add_pod(const char* address) {
    node_.put("endpoints", ec(address), node_.find<ec_endpoint>("endpoints", ec(kPod)).value());
  }

 private:
  unsigned asked_ = 0;
};

void expect_even(const Shares& shares, const std::vector<const char*>& gateways, unsigned flows) {
  const double even = static_cast<double>(flows) / static_cast<double>(gateways.size());
  for (const char* gateway : gateways) {
    const auto found = shares.find(gateway);
    const unsigned share = found == shares.end() ? 0 : found->second;
    EXPECT_NEAR(share, even, flows / 10.0) << "of " << gateway;
    EXPECT_NEAR(share, even, even / 5) << "of " << gateway;
  }
  EXPECT_EQ(shares.size(), gateways.size());
}

// --- the choice --------------------------------------------------------------------------------------------------

TEST_F(GatewaysTest, AllFlowsOfAPodTakeOneGateway) {
  node_.configure_class(members(kFour, ""));
  const Shares all = shares(choose());
  EXPECT_EQ(all.size(), 1U);
  EXPECT_EQ(all.begin()->first, gateway_for(pod_sends("203.0.114.9").tcp(1, 2, kSyn))) << "whatever the destination";
  EXPECT_EQ(all.begin()->first, gateway_for(pod_sends(kOutside).icmp(8)));
}

TEST_F(GatewaysTest, PodsSpreadEvenly) {
  node_.configure_class(members(kFour, ""));
  Shares all;
  for (unsigned i = 0; i < kFlows; ++i) {
    const std::string pod = "10.244." + std::to_string(16 + i / 250) + "." + std::to_string(1 + i % 250);
    add_pod(pod.c_str());
    ++all[gateway_for(pod_sends(kOutside).ip(pod.c_str(), kOutside).udp(1, 443))];
  }
  expect_even(all, kFour, kFlows);
}

TEST_F(GatewaysTest, FlowsOfAPodSpreadEvenly) {
  for (const auto& gateways : {kTwo, kFour}) {
    node_.configure_class(members(gateways, kByFlow));
    forget_flows();
    expect_even(shares(choose()), gateways, kFlows);
  }
}

TEST_F(GatewaysTest, FlowsToManyAddressesSpreadEvenly) {
  node_.configure_class(members(kFour, kByFlow));
  Shares all;
  for (unsigned i = 0; i < kFlows; ++i) {
    const std::string dst = "198.51." + std::to_string(i / 250) + "." + std::to_string(1 + i % 250);
    ++all[gateway_for(pod_sends(dst.c_str()).tcp(40000, 443, kSyn))];
  }
  expect_even(all, kFour, kFlows);
}

TEST_F(GatewaysTest, AGatewayThatGoesMovesItsOwnFlowsAlone) {
  for (const char* more : {R"(, "spread": "flow", "onChange": "keep")", R"(, "spread": "flow", "onChange": "cut")"}) {
    node_.configure_class(members(kFour, more));
    forget_flows();
    const Choices before = choose();
    node_.configure_class(members({kGateway, kGateway2, kGateway4}, more));
    const Choices after = choose();
    const Choices gone = moved(before, after);
    EXPECT_EQ(shares(gone), (Shares{{kGateway3, shares(before)[kGateway3]}})) << more;
    EXPECT_NEAR(static_cast<double>(gone.size()), kFlows / 4.0, kFlows / 20.0);
    const Shares rest = shares(after);
    expect_even(rest, {kGateway, kGateway2, kGateway4}, kFlows);
    EXPECT_FALSE(rest.contains("")) << "flows are dropped";
  }
}

TEST_F(GatewaysTest, AGatewayThatComesTakesItsShareOfNewFlows) {
  node_.configure_class(members({kGateway, kGateway2, kGateway4}, kByFlow));
  const Choices before = choose();
  node_.configure_class(members(kFour, kByFlow));
  forget_flows();
  const Choices after = choose();
  for (const auto& [port, gateway] : moved(before, after)) EXPECT_EQ(after.at(port), kGateway3);
  EXPECT_NEAR(static_cast<double>(moved(before, after).size()), kFlows / 4.0, kFlows / 20.0);
}

TEST_F(GatewaysTest, OnlyGatewaysWithAnEgressIpOfTheFamilyTakePart) {
  node_.configure_class(R"("destinations": ["0.0.0.0/0", "::/0"], "spread": "flow", "gateways": [
      {"address": "192.0.2.21", "egressIPs": ["203.0.113.21"]},
      {"address": "192.0.2.22", "egressIPs": ["203.0.113.22", "2001:db8:113::22"]},
      {"address": "192.0.2.23", "egressIPs": ["2001:db8:113::23"]}])");
  Shares v4;
  Shares v6;
  for (std::uint16_t port = 1; port <= 200; ++port) {
    ++v4[gateway_for(pod_sends(kOutside).udp(port, 443))];
    ++v6[gateway_for(pod_sends(kOutside6).udp(port, 443))];
  }
  expect_even(v4, {kGateway, kGateway2}, 200);
  expect_even(v6, {kGateway2, kGateway3}, 200);
}

TEST_F(GatewaysTest, ThisNodeMayBeOneOfThem) {
  const std::uint32_t id = node_.configure_class(members({kGateway, kUnderlay}, kByFlow));
  unsigned local = 0;
  for (std::uint16_t port = 1; port <= kFlows; ++port) {
    if (port % kOften == 0) node_.keep_hearing_gateways();
    const Outcome outcome = node_.classify(pod_sends(kOutside).udp(port, 443));
    EXPECT_EQ(outcome.action, Action::kRedirect);
    if (outcome.mark == new_mark_of(id)) {
      ++local;
      node_.gateway_in(outcome);
    } else {
      EXPECT_EQ(outcome.mark, mark_of(id));
      EXPECT_EQ(node_.gateway_of(outcome), kGateway);
    }
  }
  EXPECT_NEAR(local, kFlows / 2.0, kFlows / 20.0);
  EXPECT_EQ(node_.counted(EC_STEERED_LOCAL), local);
  EXPECT_EQ(node_.counted(EC_STEERED_TUNNEL), kFlows - local);
}

TEST_F(GatewaysTest, AnAnswerMayComeFromAnyOfThemAndFromNoOther) {
  const std::uint32_t id = node_.configure_class(members({kGateway, kGateway2}, ""));
  const std::uint32_t vni = node_.find<ec_class>("classes", id)->vni;
  const Bytes answer = Packet().from(kForeignMac).to(kForeignMac).ip(kOutside, kPod).tcp(443, 40000).bytes();
  for (const char* sender : {kGateway, kGateway2, kGateway3}) node_.send_tunneled(sender, vni, answer);
  node_.expect_counts({{id, EC_RETURNED, 2, 2 * answer.size()}, {id, EC_DROP_WRONG_GATEWAY, 1, answer.size()}});
}

// --- gateways that do not answer ---------------------------------------------------------------------------------

TEST_F(GatewaysTest, NewFlowsAvoidAGatewayThatDoesNotAnswer) {
  node_.configure_class(members(kFour, kByFlow));
  const Choices before = choose();
  forget_flows();
  node_.lose_gateway(kGateway2);
  const Choices after = choose();
  EXPECT_FALSE(shares(after).contains(kGateway2));
  EXPECT_FALSE(shares(after).contains("")) << "flows are dropped";
  EXPECT_EQ(shares(moved(before, after)), (Shares{{kGateway2, shares(before)[kGateway2]}}));
  expect_even(shares(after), {kGateway, kGateway3, kGateway4}, kFlows);
}

TEST_F(GatewaysTest, AllFlowsOfAPodAvoidItTogether) {
  node_.configure_class(members(kFour, ""));
  const std::string due = gateway_for(of_flow(1));
  node_.lose_gateway(due.c_str());
  const Shares after = shares(choose());
  EXPECT_EQ(after.size(), 1U);
  EXPECT_NE(after.begin()->first, due);
  EXPECT_NE(after.begin()->first, "");
}

TEST_F(GatewaysTest, ALiveFlowLeavesAGatewayThatDoesNotAnswerAndStaysWithTheOther) {
  node_.configure_class(members(kFour, kByFlow));
  const Choices first = choose(100);
  node_.lose_gateway(kGateway2);
  const Choices second = choose(100);
  for (const auto& [port, gateway] : moved(first, second)) EXPECT_EQ(gateway, kGateway2);
  EXPECT_FALSE(shares(second).contains(kGateway2));
  node_.see_gateways();
  EXPECT_EQ(choose(100), second) << "a live flow goes back";
  forget_flows();
  EXPECT_EQ(choose(100), first) << "a new flow does not";
}

TEST_F(GatewaysTest, WhenNoneAnswersPacketsAreDropped) {
  const std::uint32_t id = node_.configure_class(members(kTwo, kByFlow));
  for (const char* gateway : kTwo) node_.lose_gateway(gateway);
  const Packet packet = of_flow(1);
  EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
  node_.expect_counts({{id, EC_DROP_GATEWAY_UNREACHABLE, 1, packet.bytes().size()}});
}

TEST_F(GatewaysTest, AGatewayThatDidNotAnswerIsAskedByTheFlowsThatAreDueToIt) {
  node_.configure_class(members(kTwo, ""));
  const std::string due = gateway_for(of_flow(1));
  node_.put("gateways", ec(due.c_str()), ec_gateway{0, 0, EC_PROBES_UNANSWERED, 0});
  EXPECT_NE(gateway_for(of_flow(2)), due);
  const auto probe = node_.next_tunneled();
  ASSERT_TRUE(probe) << "it is not asked";
  EXPECT_EQ(probe->vni, EC_VNI_PROBE);
  EXPECT_EQ(probe->dst, due);
  EXPECT_EQ(node_.find<ec_gateway>("gateways", ec(due.c_str()))->unanswered, EC_PROBES_UNANSWERED + 1U);
}

// --- changes of the configuration --------------------------------------------------------------------------------

constexpr const char* kKeep = R"(, "spread": "flow", "onChange": "keep")";
constexpr const char* kCut = R"(, "spread": "flow", "onChange": "cut")";

TEST_F(GatewaysTest, OpenFlowsKeepTheirGatewayWhenOneComes) {
  node_.configure_class(members(kTwo, kKeep));
  const Choices before = choose();
  node_.configure_class(members(kFour, kKeep));
  EXPECT_EQ(choose(), before);
}

TEST_F(GatewaysTest, OpenFlowsAreKeptAlsoWhenTheirDestinationIsSteeredNoMore) {
  node_.configure_class(members(kTwo, kKeep));
  const Choices before = choose(20);
  node_.configure_class(members(kTwo, kKeep, R"("192.168.0.0/16")"));
  EXPECT_EQ(choose(20), before);
  EXPECT_EQ(node_.classify(of_flow(1)).action, Action::kNext) << "a new flow is steered";
  node_.configure_class(members(kTwo, kKeep, R"("192.168.0.0/16", "10.0.0.0/8")"));
  EXPECT_EQ(choose(20), before) << "the next change ends them";
}

TEST_F(GatewaysTest, OpenFlowsAreCutWhenTheirDestinationIsSteeredNoMore) {
  node_.configure_class(members(kTwo, kCut));
  choose(20);
  node_.configure_class(members(kTwo, kCut, R"("192.168.0.0/16")"));
  EXPECT_EQ(shares(choose(20)), (Shares{{"", 20}}));
  EXPECT_EQ(node_.counted(EC_BYPASSED), 20U);
}

TEST_F(GatewaysTest, OpenFlowsAreCutWhenTheyAreToBeDropped) {
  const std::uint32_t id = node_.configure_class(members(kTwo, kCut));
  choose(20);
  const std::uint64_t bytes = 20 * of_flow(1).bytes().size();
  node_.configure_class(members(kTwo, std::string(kCut) + R"(, "otherwise": "drop")", R"("192.168.0.0/16")"));
  choose(20);
  node_.expect_counts({{id, EC_STEERED_TUNNEL, 20, bytes}, {id, EC_DROP_OTHERWISE, 20, bytes}});
}

TEST_F(GatewaysTest, WhatIsNewlySteeredIsSteeredAtOnce) {
  for (const char* more : {kKeep, kCut}) {
    node_.configure_class(members(kTwo, more, R"("192.168.0.0/16")"));
    EXPECT_EQ(shares(choose(20)), (Shares{{"", 20}}));
    node_.configure_class(members(kTwo, more));
    EXPECT_FALSE(shares(choose(20)).contains("")) << more;
  }
}

TEST_F(GatewaysTest, AnOpenFlowWhoseGatewayIsGoneIsDecidedAnew) {
  node_.configure_class(members({kGateway3}, kKeep));
  EXPECT_EQ(gateway_for(of_flow(1)), kGateway3);
  node_.configure_class(members({kGateway4}, kKeep, R"("192.168.0.0/16")"));
  EXPECT_EQ(node_.classify(of_flow(1)).action, Action::kNext) << "it is steered to no destination of the class";
}

TEST_F(GatewaysTest, ANewConnectionOnTheOldPortsIsNotTheOldOne) {
  node_.configure_class(members(kTwo, kKeep));
  EXPECT_NE(gateway_for(pod_sends(kOutside).tcp(80, 443, kSyn)), "");
  node_.configure_class(members(kTwo, kKeep, R"("192.168.0.0/16")"));
  EXPECT_NE(gateway_for(pod_sends(kOutside).tcp(80, 443)), "");
  EXPECT_EQ(node_.classify(pod_sends(kOutside).tcp(80, 443, kSyn)).action, Action::kNext);
  EXPECT_EQ(node_.classify(pod_sends(kOutside).tcp(80, 443)).action, Action::kNext) << "its packets go the old way";
}

TEST_F(GatewaysTest, AFlowFollowsItsPodIntoAnotherClass) {
  EXPECT_EQ(gateway_for(of_flow(1)), kGateway);
  node_.put_pod("pod0", kLocalClass);
  EXPECT_EQ(node_.classify(of_flow(1)).mark, new_mark_of(kLocalClass));
  node_.put_pod("pod0", kTunnelClass);
  EXPECT_EQ(gateway_for(of_flow(1)), kGateway);
}

// --- fragments ---------------------------------------------------------------------------------------------------

Packet first_fragment(std::uint16_t port) { return of_flow(port).fragment(port, 0, true).payload(1472); }

Packet later_fragment(std::uint16_t port) {
  return pod_sends(kOutside).fragment(port, 1480, false).protocol(IPPROTO_UDP).payload(400);
}

TEST_F(GatewaysTest, LaterFragmentsFollowTheirFirst) {
  node_.configure_class(members(kFour, kByFlow));
  std::set<std::string> taken;
  for (std::uint16_t port = 1; port <= 40; ++port) {
    const std::string gateway = gateway_for(first_fragment(port));
    EXPECT_EQ(gateway_for(later_fragment(port)), gateway);
    taken.insert(gateway);
  }
  EXPECT_EQ(taken.size(), 4U);
}

TEST_F(GatewaysTest, LaterFragmentsAheadOfTheirFirstAreDropped) {
  const std::uint32_t id = node_.configure_class(members(kFour, kByFlow));
  const Packet packet = later_fragment(1);
  EXPECT_EQ(node_.classify(packet).action, Action::kDrop);
  node_.expect_counts({{id, EC_DROP_FRAGMENT, 1, packet.bytes().size()}});
}

TEST_F(GatewaysTest, LaterFragmentsAheadOfTheirFirstGoWhereThePodGoes) {
  node_.configure_class(members(kFour, ""));
  EXPECT_EQ(gateway_for(later_fragment(1)), gateway_for(of_flow(1)));
  node_.configure_class(members({kGateway2}, kByFlow));
  EXPECT_EQ(gateway_for(later_fragment(2)), kGateway2) << "there is one gateway only";
}

TEST_F(GatewaysTest, LaterFragmentsOfWhatWasDroppedAreDroppedForItsReason) {
  const std::uint32_t id = node_.configure_class(members(kTwo, R"(, "otherwise": "drop", "ports": ["udp/53"])"));
  EXPECT_EQ(node_.classify(first_fragment(1)).action, Action::kDrop);
  EXPECT_EQ(node_.classify(later_fragment(1)).action, Action::kDrop);
  node_.expect_counts(
      {{id, EC_DROP_OTHERWISE, 2, first_fragment(1).bytes().size() + later_fragment(1).bytes().size()}});
}

}  // namespace
}  // namespace egressclass
