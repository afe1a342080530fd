// SPDX-License-Identifier: Apache-2.0
// gateway_in: what comes into the gateway's namespace from pods gets the mark by which nft translates it. Which egress
// IP that is: see slots_test.cc.
#include "datapath_fixture.h"

namespace egressclass {
namespace {

struct Case {
  const char* claim;
  void (*given)(Node& node) = nullptr;
  Packet packet;
  std::uint32_t mark;
  Action action;
  std::uint32_t mark_after = 0;  // on what is not dropped
  std::uint32_t class_id = kLocalClass;
  std::optional<ec_event> counted = {};
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.claim << ", given with the mark " << c.mark << c.packet;
}

Packet request() { return local_pod_sends(kOutside).udp(40000, 443).payload(100); }

class GatewayIn : public DatapathTest, public ::testing::WithParamInterface<Case> {};

TEST_P(GatewayIn, Claim) {
  const Case& c = GetParam();
  if (c.given != nullptr) c.given(node_);
  const Bytes packet = c.packet.bytes();
  const Outcome run = node_.run(Program::kGatewayIn, packet, node_.inside().ifindex(), c.mark);
  EXPECT_EQ(run.action, c.action);
  if (c.action != Action::kDrop) {
    EXPECT_EQ(run.mark, c.mark_after) << "the mark is wrong";
    EXPECT_EQ(hex_dump(run.data), hex_dump(packet));
  }
  std::vector<Count> counts;
  if (c.counted) counts.push_back({c.class_id, *c.counted, 1, packet.size()});
  node_.expect_counts(counts);
}

INSTANTIATE_TEST_SUITE_P(
    Chosen, GatewayIn,
    ::testing::Values(Case{.claim = "a packet of a pod here gets the id of its egress IP",
                           .packet = request(),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kNext,
                           .mark_after = kLocalClass,
                           .counted = EC_STEERED_LOCAL},
                      Case{.claim = "that of a pod of another node is known by its mark ever after",
                           .packet = request(),
                           .mark = EC_MARK_NEW | EC_MARK_TUNNELED | kLocalClass,
                           .action = Action::kNext,
                           .mark_after = EC_MARK_TUNNELED | kLocalClass,
                           .counted = EC_GATEWAY_OUT},
                      Case{.claim = "a later fragment gets one too",
                           .packet = local_pod_sends(kOutside).fragment(1, 1480, false).protocol(17).payload(2),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kNext,
                           .mark_after = kLocalClass,
                           .counted = EC_STEERED_LOCAL},
                      Case{.claim = "a protocol without ports gets one too",
                           .packet = local_pod_sends(kOutside).protocol(253).payload(2),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kNext,
                           .mark_after = kLocalClass,
                           .counted = EC_STEERED_LOCAL}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    FromOutside, GatewayIn,
    ::testing::Values(Case{.claim = "what has no mark is untouched",
                           .packet = outside_sends(kOutside, kEgressIp).udp(443, 1),
                           .mark = 0,
                           .action = Action::kNext},
                      Case{.claim = "what has no mark is untouched although it is no IP",
                           .packet = Packet().from(kInsideMac).to(kInsideMac).arp(kOutside, kEgressIp),
                           .mark = 0,
                           .action = Action::kNext},
                      Case{.claim = "a mark that does not say that it is new is untouched",
                           .packet = request(),
                           .mark = EC_MARK_TUNNELED | kLocalClass,
                           .action = Action::kNext,
                           .mark_after = EC_MARK_TUNNELED | kLocalClass}),
    claim_as_name<Case>);

INSTANTIATE_TEST_SUITE_P(
    Refused, GatewayIn,
    ::testing::Values(Case{.claim = "a class that is no more is refused",
                           .given = [](Node& node) { node.erase("classes", kLocalClass); },
                           .packet = request(),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kDrop,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "a class that never was is refused",
                           .packet = request(),
                           .mark = EC_MARK_NEW | 0x3ffffff,
                           .action = Action::kDrop,
                           .class_id = 0x3ffffff,
                           .counted = EC_DROP_CLASS_REMOVED},
                      Case{.claim = "a class whose gateway is another node is not translated here",
                           .packet = request(),
                           .mark = EC_MARK_NEW | kTunnelClass,
                           .action = Action::kDrop,
                           .class_id = kTunnelClass,
                           .counted = EC_DROP_NOT_GATEWAY},
                      Case{.claim = "with the datapath down what pods send is dropped",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = request(),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kDrop,
                           .class_id = 0,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "with the datapath down what comes from outside is dropped",
                           .given = [](Node& node) { node.set_applied(false); },
                           .packet = outside_sends(kOutside, kEgressIp).udp(443, 1),
                           .mark = 0,
                           .action = Action::kDrop,
                           .class_id = 0,
                           .counted = EC_DROP_DATAPATH_DOWN},
                      Case{.claim = "ARP of a pod is refused",
                           .packet = Packet().from(kLocalPodMac).to(kInsideMac).arp(kLocalPod, kOutside),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP},
                      Case{.claim = "a cut transport header is refused",
                           .packet = request().cut(14 + 20 + 3),
                           .mark = EC_MARK_NEW | kLocalClass,
                           .action = Action::kDrop,
                           .counted = EC_DROP_NOT_IP}),
    claim_as_name<Case>);

}  // namespace
}  // namespace egressclass
