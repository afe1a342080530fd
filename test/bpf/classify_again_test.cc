// SPDX-License-Identifier: Apache-2.0
// classify_again: takes the place of classify where that is not there any more, and lets pass what that has passed on.
#include "datapath_fixture.h"

namespace egressclass {
namespace {

class ClassifyAgain : public DatapathTest {
 protected:
  Outcome run(Program program, const Packet& packet, std::array<__u32, 2> cb = {}) const {
    __sk_buff context{};
    context.ifindex = static_cast<__u32>(node_.ifindex("pod0"));
    context.cb[0] = cb[0];
    context.cb[1] = cb[1];
    return node_.run(program, packet.bytes(), context);
  }

  std::array<__u32, 2> passed() const {
    const ec_node node = node_.find<ec_node>("node", 0U).value();
    return {node.passed[0], node.passed[1]};
  }
};

Packet steered() { return pod_sends(kOutside).udp(1, 443); }
Packet never_steered() { return pod_sends(kServiceIp).udp(1, 443); }
Packet spoofed() { return pod_sends(kOutside).ip(kLocalPod, kOutside).udp(1, 443); }

TEST_F(ClassifyAgain, WhatClassifyHasPassedOnIsNotLookedAtAgain) {
  const Outcome first = run(Program::kClassify, never_steered());
  ASSERT_EQ(first.action, Action::kNext);
  EXPECT_EQ(first.cb, passed());
  EXPECT_EQ(run(Program::kClassifyAgain, never_steered(), first.cb).action, Action::kNext);
  node_.expect_counts({{kTunnelClass, EC_BYPASSED, 1, never_steered().bytes().size()}});
}

TEST_F(ClassifyAgain, OtherwiseItDoesWhatClassifyDoes) {
  for (const Packet& packet : {steered(), never_steered(), spoofed(), pod_sends(kOutside).ether_type(0x0806)}) {
    const Outcome expected = run(Program::kClassify, packet);
    const Outcome again = run(Program::kClassifyAgain, packet);
    EXPECT_EQ(again.action, expected.action);
    EXPECT_EQ(again.mark, expected.mark);
    EXPECT_EQ(again.data, expected.data);
  }
}

TEST_F(ClassifyAgain, WhatOthersLeftInTheBufferIsNoPass) {
  const auto [first, second] = passed();
  for (const std::array<__u32, 2> cb : {std::array{0U, 0U}, {first, 0U}, {0U, second}, {first + 1, second}})
    EXPECT_EQ(run(Program::kClassifyAgain, spoofed(), cb).action, Action::kDrop);
}

TEST_F(ClassifyAgain, MapsThatNobodyFilledPassNothing) {
  node_.change<ec_node>("node", 0U, [](ec_node& node) { node.passed[0] = node.passed[1] = 0; });
  EXPECT_EQ(run(Program::kClassifyAgain, spoofed()).action, Action::kDrop);
}

TEST_F(ClassifyAgain, ThePassStaysWhatItIsOverAChange) {
  const auto before = passed();
  EXPECT_NE(before[0], 0U);
  node_.configure_class(R"("destinations": ["0.0.0.0/0"], "egressIPs": ["203.0.113.21"],
                           "gateways": [{"address": "192.0.2.21"}])");
  EXPECT_EQ(passed(), before);
}

}  // namespace
}  // namespace egressclass
