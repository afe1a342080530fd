// SPDX-License-Identifier: Apache-2.0
// Every reason for which a program drops a packet: one that it drops, and is counted once, as that and as nothing else;
// and one that it does not drop, which differs by no more than it has to.
#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "core/mark.h"
#include "datapath_fixture.h"

namespace egressclass {
namespace {

struct Drop {
  ec_event reason;
  void (*dropped)(Node& node);
  void (*not_dropped)(Node& node);
};

std::ostream& operator<<(std::ostream& out, const Drop& drop) { return out << name_of(drop.reason); }

/// A class by one gateway.
std::string by(const char* gateway, const std::string& more = "") {
  return R"("destinations": ["198.51.100.0/24", "2001:db8:51::/48"], "egressIPs": ["203.0.113.21"],
            "gateways": [{"address": ")" +
         std::string(gateway) + "\"}]" + more;
}

constexpr const char* kByNextHop = R"("destinations": ["0.0.0.0/0"],
    "gateways": [{"via": "nexthop", "interface": "outside", "address": "203.0.113.1"}])";

Packet request(const char* dst = kOutside) { return pod_sends(dst).udp(40000, 443); }
Packet later_fragment() { return pod_sends(kOutside).fragment(1, 1480, false).protocol(17).payload(64); }

/// Of this node's pod, in the tunnel of its class.
void answer(const Node& node, const char* sender) {
  node.send_tunneled(sender, kTunnelVni, Packet().ip(kOutside, kPod).udp(443, 40000).bytes());
}

/// Of another node's pod.
void ask(const Node& node, std::uint32_t vni, const char* sender = kWorker, const char* dst = kOutside) {
  node.send_tunneled(sender, vni, Packet().ip(kRemotePod, dst).udp(40000, 443).bytes());
}

/// IPv6 from the pod to an address that is IPv4.
Bytes to_mapped(const char* ipv4) {
  Bytes packet = request(kOutside6).bytes();
  const ec_ip mapped = ec(ipv4);
  std::memcpy(packet.data() + 14 + 24, &mapped, sizeof(mapped));
  return packet;
}

ec_exhausted_key endpoint_of_local_class() {
  return {.remote = ec(kOutside), .vni = kLocalVni, .port = htons(443), .proto = IPPROTO_UDP};
}

/// A reply to another node's pod, which leaves the gateway's namespace.
void return_to(Node& node, const char* src = kOutside, const char* dst = kRemotePod) {
  node.put("workers", ec(kRemotePod),
           ec_worker{.node = ec(kWorker), .gateway = ec(kUnderlay), .class_id = kLocalClass, .pad = 0});
  node.inside().send(Packet().from(kInsideMac).to(kInsideMac).ip(src, dst).udp(443, 40000).bytes());
}

void send_to_egress0(const Node& node, std::uint32_t mark) {
  node.egress0().send(Packet().from(kForeignMac).to(kForeignMac).ip(kOutside, kRemotePod).udp(443, 40000).bytes(),
                      mark);
}

/// Of this node's pod, of the class whose gateway this node is.
void ask_here(const Node& node) { node.far("pod1").send(local_pod_sends(kOutside).udp(40000, 443).bytes()); }

const std::vector<Drop>& drops() {
  static const std::vector<Drop> list = {
      {EC_DROP_NO_ATTACHMENT, [](Node& node) { node.classify(request(), "outside"); },
       [](Node& node) { node.classify(request()); }},
      {EC_DROP_DATAPATH_DOWN,
       [](Node& node) {
         node.set_applied(false);
         node.classify(request());
       },
       [](Node& node) {
         node.set_applied(false);
         node.set_applied(true);
         node.classify(request());
       }},
      {EC_DROP_NOT_IP, [](Node& node) { node.classify(request().ether_type(0x88cc)); },
       [](Node& node) { node.classify(request().ether_type(0x0800)); }},
      {EC_DROP_SPOOFED, [](Node& node) { node.classify(request().ip(kLocalPod, kOutside)); },
       [](Node& node) { node.classify(request().ip(kPod, kOutside)); }},
      {EC_DROP_CLASS_REMOVED,
       [](Node& node) {
         node.put_pod("pod0", node.configure_class(by(kGateway)) + 1);
         node.classify(request());
       },
       [](Node& node) {
         node.put_pod("pod0", node.configure_class(by(kGateway)));
         node.classify(request());
       }},
      {EC_DROP_OTHERWISE,
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "otherwise": "drop")"));
         node.classify(request("203.0.114.7"));
       },
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "otherwise": "bypass")"));
         node.classify(request("203.0.114.7"));
       }},
      {EC_DROP_TOO_LONG,
       [](Node& node) {
         node.configure_class(kByNextHop);
         node.classify(request().payload(1473));
       },
       [](Node& node) {
         node.configure_class(kByNextHop);
         node.classify(request().payload(1472));
       }},
      {EC_DROP_FRAGMENT,
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "ports": ["udp/443"])"));
         node.classify(later_fragment());
       },
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "ports": ["any"])"));
         node.classify(later_fragment());
       }},
      {EC_DROP_FAMILY,
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "otherFamily": "drop")"));
         node.classify(request(kOutside6));
       },
       [](Node& node) {
         node.configure_class(by(kGateway, R"(, "otherFamily": "bypass")"));
         node.classify(request(kOutside6));
       }},
      {EC_DROP_GATEWAY_UNREACHABLE,
       [](Node& node) {
         node.lose_gateway(kGateway);
         node.classify(request());
       },
       [](Node& node) {
         node.lose_gateway(kGateway);
         node.see_gateways();
         node.classify(request());
       }},
      {EC_DROP_UNKNOWN_SENDER, [](Node& node) { ask(node, kLocalVni, kStranger); },
       [](Node& node) { ask(node, kLocalVni, kWorker); }},
      {EC_DROP_UNKNOWN_CLASS, [](Node& node) { ask(node, 0x777777); }, [](Node& node) { ask(node, kLocalVni); }},
      {EC_DROP_WRONG_GATEWAY, [](Node& node) { answer(node, kGateway2); }, [](Node& node) { answer(node, kGateway); }},
      {EC_DROP_NOT_GATEWAY, [](Node& node) { ask(node, kTunnelVni); }, [](Node& node) { ask(node, kLocalVni); }},
      {EC_DROP_BAD_DESTINATION, [](Node& node) { ask(node, kLocalVni, kWorker, kServiceIp); },
       [](Node& node) { ask(node, kLocalVni, kWorker, kOutside); }},
      {EC_DROP_UNVERIFIED, [](Node& node) { send_to_egress0(node, pending_mark_of(kLocalClass)); },
       [](Node& node) { return_to(node); }},
      {EC_DROP_RULES_MISSING,
       [](Node& node) {
         node.change<ec_class>("classes", kTunnelClass, [](ec_class& c) { c.ruleset = 999; });
         node.classify(request());
       },
       [](Node& node) { node.classify(request()); }},
      {EC_DROP_MAPPED_ADDRESS,
       [](Node& node) { node.run(Program::kClassify, to_mapped(kServiceIp), node.ifindex("pod0")); },
       [](Node& node) { node.classify(request(kServiceIp6)); }},
      {EC_DROP_NAT_EXHAUSTED,
       [](Node& node) {
         node.put("exhausted", endpoint_of_local_class(), monotonic_ns());
         ask_here(node);
       },
       [](Node& node) {
         node.put("exhausted", endpoint_of_local_class(), monotonic_ns() - EC_EXHAUSTED_NS);
         ask_here(node);
       }},
      {EC_DROP_STRAY, [](Node& node) { send_to_egress0(node, 0); }, [](Node& node) { return_to(node); }},
      {EC_DROP_GATEWAY_GONE,
       [](Node& node) {
         node.cut_off_gateway();
         ask_here(node);
       },
       [](Node& node) { ask_here(node); }},
      {EC_DROP_NOT_TRANSLATED, [](Node& node) { return_to(node, kOutside, "10.244.2.8"); },
       [](Node& node) { return_to(node, kOutside, kRemotePod); }},
      {EC_DROP_NO_ROUTE, [](Node& node) { return_to(node, kEgressIp, "203.0.114.7"); },
       [](Node& node) { return_to(node, kEgressIp, kRemotePod); }},
  };
  return list;
}

// For which the kernel gives no occasion: it refuses a tunnel key, or an entry in an LRU map, only without memory.
const std::set<ec_event> kNeverSeen = {EC_DROP_TUNNEL_FAILED, EC_DROP_WORKER_TABLE};

class Drops : public DatapathTest, public ::testing::WithParamInterface<Drop> {
 protected:
  /// What was counted of one packet, once it has been.
  std::vector<Count> counted() const {
    const std::uint64_t deadline = monotonic_ns() + 1'000'000'000;
    while (node_.counts().empty() && monotonic_ns() < deadline) continue;
    node_.far("uplink").receive_all();  // a moment, in which it might be counted again
    return node_.counts();
  }
};

TEST_P(Drops, IsCountedOnceAsThatAlone) {
  GetParam().dropped(node_);
  const std::vector<Count> counts = counted();
  ASSERT_EQ(counts.size(), 1U);
  EXPECT_STREQ(name_of(counts[0].event), name_of(GetParam().reason));
  EXPECT_EQ(counts[0].packets, 1U);
}

TEST_P(Drops, IsNotCountedOfWhatGoesOn) {
  GetParam().not_dropped(node_);
  const std::vector<Count> counts = counted();
  ASSERT_EQ(counts.size(), 1U);
  EXPECT_LT(counts[0].event, static_cast<__u32>(EC_FIRST_DROP)) << name_of(counts[0].event);
  EXPECT_EQ(counts[0].packets, 1U);
}

INSTANTIATE_TEST_SUITE_P(Reasons, Drops, ::testing::ValuesIn(drops()),
                         [](const auto& drop) { return name_of(drop.param.reason); });

TEST(DropReasons, AllHaveTheirCases) {
  std::set<ec_event> cases = kNeverSeen;
  for (const Drop& drop : drops()) cases.insert(drop.reason);
#define X(number, id, name) EXPECT_TRUE((number) < EC_FIRST_DROP || cases.contains(EC_##id)) << (name);
  EC_EVENTS(X)
#undef X
}

}  // namespace
}  // namespace egressclass
