// SPDX-License-Identifier: Apache-2.0
// Counters tell packets and bytes of the wire: what a packet that is to be cut into segments becomes.
#include "datapath_fixture.h"

namespace egressclass {
namespace {

struct Segmented {
  const char* claim;
  Packet packet;
  __u32 size;  // of a segment's payload
  std::uint64_t packets;
  std::uint64_t further_headers;  // of all segments but the first, in bytes
};

std::ostream& operator<<(std::ostream& out, const Segmented& s) { return out << s.claim << s.packet; }

class Segments : public DatapathTest, public ::testing::WithParamInterface<Segmented> {};

TEST_P(Segments, AreCounted) {
  const Segmented& s = GetParam();
  const Bytes packet = s.packet.bytes();
  __sk_buff context{};
  context.ifindex = static_cast<__u32>(node_.ifindex("pod0"));
  context.gso_size = s.size;
  node_.run(Program::kClassify, packet, context);
  node_.expect_counts({{kTunnelClass, EC_BYPASSED, s.packets, packet.size() + s.further_headers}});
}

constexpr std::uint64_t kTcp = 14 + 20 + 20;
constexpr std::uint64_t kTcp6 = 14 + 40 + 20;
constexpr std::uint64_t kUdp = 14 + 20 + 8;

INSTANTIATE_TEST_SUITE_P(
    Packets, Segments,
    ::testing::Values(Segmented{"no segments", pod_sends(kServiceIp).tcp(1, 443).payload(2500), 0, 1, 0},
                      Segmented{"TCP", pod_sends(kServiceIp).tcp(1, 443).payload(2500), 1000, 3, 2 * kTcp},
                      Segmented{"whole segments", pod_sends(kServiceIp).tcp(1, 443).payload(2000), 1000, 2, kTcp},
                      Segmented{"one segment", pod_sends(kServiceIp).tcp(1, 443).payload(900), 1000, 1, 0},
                      Segmented{"UDP", pod_sends(kServiceIp).udp(1, 443).payload(2500), 1000, 3, 2 * kUdp},
                      Segmented{"IPv6", pod_sends(kServiceIp6).tcp(1, 443).payload(2500), 1000, 3, 2 * kTcp6}),
    claim_as_name<Segmented>);

}  // namespace
}  // namespace egressclass
