// SPDX-License-Identifier: Apache-2.0
// tunnel_out: what of all that comes to egress0 goes into the tunnel. Packets get their marks by a socket on egress0;
// on the wire is what VXLAN has made of them. Where to: see gateway_out_test.cc for what a gateway sends.
#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

constexpr std::uint32_t kOtherBits = 0xa5a50000;  // of the mark: not ours

// What the kernel routes to egress0: the MAC addresses mean nothing.
Packet inward() { return Packet().from(kForeignMac).to(kForeignMac).ip(kOutside, kRemotePod).tcp(443, 40000); }

struct Case {
  const char* claim;
  void (*given)(Node& node) = nullptr;
  Packet packet = inward();
  std::uint32_t mark;
  std::uint32_t class_id = 0;
  std::optional<ec_event> counted;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.claim << ", given with the mark " << c.mark << c.packet;
}

void worker_known(Node& node) {
  node.put("workers", ec(kRemotePod),
           ec_worker{.node = ec(kWorker), .gateway = ec(kSecondAddress), .class_id = kLocalClass, .pad = 0});
}

class TunnelOutTest : public DatapathTest {};

class TunnelOut : public TunnelOutTest, public ::testing::WithParamInterface<Case> {};

TEST_P(TunnelOut, NothingIsOnTheWire) {
  const Case& c = GetParam();
  if (c.given != nullptr) c.given(node_);
  node_.egress0().send(c.packet.bytes(), c.mark);
  std::vector<Count> counts;
  if (c.counted) counts.push_back({c.class_id, *c.counted, 1, c.packet.bytes().size()});
  node_.expect_counts(counts);
  EXPECT_TRUE(node_.far("uplink").receive_all().empty()) << "it is on the wire";
}

INSTANTIATE_TEST_SUITE_P(
    Refused, TunnelOut,
    ::testing::Values(
        Case{.claim = "a packet without a mark strays", .given = worker_known, .mark = 0, .counted = EC_DROP_STRAY},
        Case{.claim = "other bits of the mark are no mark",
             .given = worker_known,
             .mark = kOtherBits,
             .counted = EC_DROP_STRAY},
        Case{.claim = "what nft has not seen is dropped",
             .given = worker_known,
             .mark = pending_mark_of(kLocalClass),
             .counted = EC_DROP_UNVERIFIED},
        Case{.claim = "a reply that nft has not seen is dropped",
             .given = worker_known,
             .mark = kOtherBits | reply_mark(kMask),
             .counted = EC_DROP_UNVERIFIED},
        Case{.claim = "a class's mark without a tunnel key goes nowhere",
             .given = worker_known,
             .mark = mark_of(kLocalClass),
             .counted = {}},
        Case{.claim = "what bypasses goes nowhere in the tunnel",
             .given = worker_known,
             .mark = bypass_mark(kMask),
             .counted = {}},
        Case{.claim = "with the datapath down nothing with the mark of a class is sent",
             .given = [](Node& node) { node.set_applied(false); },
             .mark = mark_of(kLocalClass),
             .counted = EC_DROP_DATAPATH_DOWN},
        Case{.claim = "with the datapath down no probe is sent",
             .given = [](Node& node) { node.set_applied(false); },
             .mark = probe_mark(kMask),
             .counted = EC_DROP_DATAPATH_DOWN}),
    claim_as_name<Case>);

struct MarkCase {
  const char* claim;
  std::uint32_t mark;
  std::size_t size_after;
};

std::ostream& operator<<(std::ostream& out, const MarkCase& c) { return out << c.claim; }

class OuterMark : public TunnelOutTest, public ::testing::WithParamInterface<MarkCase> {};

TEST_P(OuterMark, Claim) {
  worker_known(node_);
  const Bytes packet = inward().payload(1000).bytes();
  const auto run = node_.run(Program::kTunnelOut, packet, node_.ifindex("egress0"), kOtherBits | GetParam().mark);
  EXPECT_EQ(run.action, Action::kNext);
  EXPECT_EQ(run.mark, kOtherBits) << "the packet around it has a mark, or has lost other bits";
  EXPECT_EQ(run.data.size(), GetParam().size_after);
}

INSTANTIATE_TEST_SUITE_P(Marks, OuterMark,
                         ::testing::Values(MarkCase{"the mark of a class stays inside", mark_of(kTunnelClass), 1054},
                                           MarkCase{"the mark of a probe stays inside, and the probe is trimmed",
                                                    probe_mark(kMask), 60}),
                         claim_as_name<MarkCase>);

TEST_F(TunnelOutTest, AShortProbeIsNotMadeLonger) {
  const Bytes packet = inward().cut(50).bytes();
  const auto run = node_.run(Program::kTunnelOut, packet, node_.ifindex("egress0"), probe_mark(kMask));
  EXPECT_EQ(run.action, Action::kNext);
  EXPECT_EQ(run.data, packet);
  node_.expect_counts({});
}

}  // namespace
}  // namespace egressclass
