// SPDX-License-Identifier: Apache-2.0
#include "datapath/host_rules.h"

#include <set>
#include <vector>

#include "core/mark.h"
#include "datapath/nft_table.h"
#include "datapath/paths.h"
#include "util/text.h"

namespace egressclass {
namespace {

/*
 * Chains are flushed and filled within the transaction, so each packet meets the old rules or the new. Counters are
 * objects of their own: adding one that exists keeps its value. Sets are flushed likewise.
 *
 * prerouting verifies what the programs took for the reply of an inbound flow. Without this table, say after a
 * `flush ruleset`, such packets are not routed at all (the pending bit of core/mark.h). Nothing of ours comes into the
 * host's stack by egress0 or ec0: what does has passed a program that somebody took away.
 *
 * Pods have no business with the tunnel's port: masqueraded to the node's address, a packet to it would be a tunnel
 * packet of a known sender. What the tunnel sends is never forwarded, it is local.
 *
 * What is for the cluster has its last destination in its header: with a source route, a node that honours it would
 * send it on to the outside.
 *
 * What IPVS takes for a service comes in for the host (the service's address is the host's) and leaves from there, with
 * the device that it came in by, and is never forwarded: guard verifies it instead of forward. IPVS does not always
 * tell conntrack that it has changed the destination, and the mark is for cluster destinations: that must hold in any
 * case.
 *
 * guard is for what is forwarded. Local programs may use the same bits for their own ends (iif 0), and on multicast a
 * mark is no mark: the kernel's IGMP and MLD reports use the field for something else (sk_buff: `mark` and
 * `reserved_tailroom` are a union).
 */
constexpr const char* kRuleset = R"(
add table inet egressclass
add counter inet egressclass not_a_reply
add counter inet egressclass service_outside
add counter inet egressclass source_route
add counter inet egressclass tunnel_from_pod
add counter inet egressclass program_missing
add set inet egressclass nodes4 { type ipv4_addr; flags interval; auto-merge; }
add set inet egressclass nodes6 { type ipv6_addr; flags interval; auto-merge; }
add set inet egressclass never4 { type ipv4_addr; flags interval; auto-merge; }
add set inet egressclass never6 { type ipv6_addr; flags interval; auto-merge; }
add chain inet egressclass prerouting { type filter hook prerouting priority mangle; policy accept; }
add chain inet egressclass verify_reply
add chain inet egressclass verify_bypass
add chain inet egressclass verify_local_bypass
add chain inet egressclass forward { type filter hook forward priority filter - 5; policy accept; }
add chain inet egressclass guard { type filter hook postrouting priority srcnat + 200; policy accept; }
flush chain inet egressclass prerouting
flush chain inet egressclass verify_reply
flush chain inet egressclass verify_bypass
flush chain inet egressclass verify_local_bypass
flush chain inet egressclass forward
flush chain inet egressclass guard
flush set inet egressclass nodes4
flush set inet egressclass nodes6
flush set inet egressclass never4
flush set inet egressclass never6
table inet egressclass {
  chain prerouting {
    meta mark & MASK == REPLY goto verify_reply
    iifname { "TUNNEL", "ec0" } counter name program_missing drop
  }
  chain verify_reply {
    ct state invalid,untracked counter name not_a_reply drop
    ct direction original ct state != related counter name not_a_reply drop
    meta mark set meta mark & OTHERS
  }
  chain verify_bypass {
    ip option lsrr exists counter name source_route drop
    ip option ssrr exists counter name source_route drop
    exthdr rt exists counter name source_route drop
    ct direction original ct status dnat ip daddr != @never4 counter name service_outside drop
    ct direction original ct status dnat ip6 daddr != @never6 counter name service_outside drop
    meta mark set meta mark & OTHERS
  }
  chain verify_local_bypass {
    ip option lsrr exists counter name source_route drop
    ip option ssrr exists counter name source_route drop
    exthdr rt exists counter name source_route drop
    ip daddr != @never4 counter name service_outside drop
    ip6 daddr != @never6 counter name service_outside drop
    meta mark set meta mark & OTHERS
  }
  chain forward {
    udp dport PORT ip daddr @nodes4 counter name tunnel_from_pod drop
    udp dport PORT ip6 daddr @nodes6 counter name tunnel_from_pod drop
    meta mark & MASK == BYPASS goto verify_bypass
  }
  chain guard {
    meta mark & MASK != BYPASS accept
    iif 0 accept
    ip daddr 224.0.0.0/4 accept
    ip6 daddr ff00::/8 accept
    goto verify_local_bypass
  }
}
)";

std::vector<std::string> prefixes_of_family(const std::set<Prefix>& prefixes, bool v4) {
  std::vector<std::string> texts;
  for (const Prefix& prefix : prefixes)
    if (prefix.ip.is_v4() == v4) texts.push_back(prefix.str());
  return texts;
}

}  // namespace

std::string host_ruleset(const Plan& plan) {
  const std::uint32_t mask = plan.mark_mask;
  return with_values(kRuleset, {{"BYPASS", hex(bypass_mark(mask))},
                                {"MASK", hex(mask)},
                                {"OTHERS", hex(~mask)},
                                {"PORT", std::to_string(plan.tunnel_port)},
                                {"REPLY", hex(reply_mark(mask))},
                                {"TUNNEL", paths::kTunnelDevice}}) +
         add_elements("nodes4", prefixes_of_family(plan.senders, true)) +
         add_elements("nodes6", prefixes_of_family(plan.senders, false)) +
         add_elements("never4", prefixes_of_family(plan.never_steered, true)) +
         add_elements("never6", prefixes_of_family(plan.never_steered, false));
}

Status apply_host_rules(const Plan& plan) { return run_nft(host_ruleset(plan)); }

}  // namespace egressclass
