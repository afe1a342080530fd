// SPDX-License-Identifier: Apache-2.0
// tunnel_out: what of all that comes to egress0 goes into the tunnel, and where to. Packets get their marks by a
// socket on egress0; on the wire is what VXLAN has made of them.
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
        Case{.claim = "a reply for a pod that was never seen is dropped",
             .mark = return_mark(kMask),
             .counted = EC_DROP_WORKER_UNKNOWN},
        Case{.claim = "a reply for another pod than was seen is dropped",
             .given = worker_known,
             .packet = inward().ip(kOutside, "10.244.2.8"),
             .mark = return_mark(kMask),
             .counted = EC_DROP_WORKER_UNKNOWN},
        Case{.claim = "a reply that is not IP is dropped",
             .given = worker_known,
             .packet = Packet().from(kForeignMac).to(kForeignMac).arp(kOutside, kRemotePod),
             .mark = return_mark(kMask),
             .counted = EC_DROP_NOT_IP},
        Case{.claim = "a reply in a class that is no more is dropped",
             .given =
                 [](Node& node) {
                   worker_known(node);
                   node.erase("classes", kLocalClass);
                 },
             .mark = return_mark(kMask),
             .class_id = kLocalClass,
             .counted = EC_DROP_CLASS_REMOVED},
        Case{.claim = "a reply in a class that has another gateway now is dropped",
             .given =
                 [](Node& node) {
                   node.put(
                       "workers", ec(kRemotePod),
                       ec_worker{
                           .node = ec(kWorker), .gateway = ec(kSecondAddress), .class_id = kTunnelClass, .pad = 0});
                 },
             .mark = return_mark(kMask),
             .class_id = kTunnelClass,
             .counted = EC_DROP_CLASS_REMOVED},
        Case{.claim = "with the datapath down no reply is sent",
             .given =
                 [](Node& node) {
                   worker_known(node);
                   node.set_applied(false);
                 },
             .mark = return_mark(kMask),
             .counted = EC_DROP_DATAPATH_DOWN},
        Case{.claim = "with the datapath down no probe is sent",
             .given = [](Node& node) { node.set_applied(false); },
             .mark = probe_mark(kMask),
             .counted = EC_DROP_DATAPATH_DOWN}),
    claim_as_name<Case>);

TEST_F(TunnelOutTest, AReplyGoesToTheWorkerOfItsPodInTheTunnelOfItsClass) {
  worker_known(node_);
  const Packet reply = inward().payload(1300);
  node_.egress0().send(reply.bytes(), return_mark(kMask));
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire (or the packet around it has a mark)";
  EXPECT_EQ(tunneled->vni, kLocalVni);
  EXPECT_EQ(tunneled->src, kSecondAddress);
  EXPECT_EQ(tunneled->dst, kWorker);
  EXPECT_EQ(tunneled->checksum, 0U);
  EXPECT_EQ(hex_dump(tunneled->inner), hex_dump(in_tunnel(reply, kSecondAddress, kWorker).bytes()));
  node_.expect_counts({{kLocalClass, EC_GATEWAY_BACK, 1, reply.bytes().size()}});
}

TEST_F(TunnelOutTest, AReplyIsKnownByItsMarkWhateverTheOtherBits) {
  worker_known(node_);
  node_.egress0().send(inward().bytes(), kOtherBits | return_mark(kMask));
  EXPECT_TRUE(node_.next_tunneled());
}

TEST_F(TunnelOutTest, AReplyFollowsAPodThatWasLearnedFromTheTunnel) {
  const Packet request = Packet().from(kForeignMac).to(kForeignMac).ip(kRemotePod, kOutside);
  node_.send_tunneled(kSecondWorker, kLocalVni, Packet(request).udp(1, 2).bytes());
  ASSERT_TRUE(node_.next_routed());
  node_.egress0().send(inward().bytes(), return_mark(kMask));
  const auto tunneled = node_.next_tunneled();
  ASSERT_TRUE(tunneled) << "nothing is on the wire";
  EXPECT_EQ(tunneled->dst, kSecondWorker);
}

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
                                           MarkCase{"the mark of a reply stays inside", return_mark(kMask), 1054},
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
