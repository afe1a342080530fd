// SPDX-License-Identifier: Apache-2.0
#include "datapath/gateway_rules.h"

#include <map>
#include <set>
#include <vector>

#include "../bpf/egressclass.h"
#include "datapath/in_netns.h"
#include "datapath/nft_table.h"
#include "datapath/paths.h"
#include "util/text.h"

namespace egressclass {
namespace {

/*
 * Chains are flushed and filled within the transaction, so each packet meets the old rules or the new. Counters are
 * objects of their own: adding one that exists keeps its value. Sets and maps are flushed likewise. There are few
 * chains, as each costs every packet something.
 *
 * A packet with a mark comes from a pod, and one without from outside. What gateway_in has not seen still has the bit
 * NEW, and is not translated. The ct mark of a flow is the mark that its first packet had: the id of its egress IP, and
 * TUNNELED. The packets that follow may have the id of another egress IP of the class: `sources` has every id of a
 * class with every egress IP of it, and what conntrack does not translate to one of these does not leave.
 *
 * From outside come replies. What opens a flow is refused before conntrack has an entry of it, which would take a port
 * from the pods; pings are answered, new ones up to a rate. Replies to pods of other nodes get the mark TUNNELED alone,
 * which has a route with the MTU of the tunnel (gateway_netns.cc).
 *
 * What the namespace itself says has no mark, though that field may be set: the kernel's IGMP and MLD reports use it
 * for something else (sk_buff: `mark` and `reserved_tailroom` are a union); it has come in by no interface (iif 0).
 *
 * Ports are taken at random: from a pod's own port on, the kernel would give up within a run of taken ones.
 */
constexpr const char* kRuleset = R"(
add table inet egressclass
add counter inet egressclass wrong_source
add counter inet egressclass invalid
add counter inet egressclass untranslated
add counter inet egressclass unasked
add map inet egressclass snat4 { type mark : ipv4_addr; }
add map inet egressclass snat6 { type mark : ipv6_addr; }
add set inet egressclass sources4 { type mark . ipv4_addr; }
add set inet egressclass sources6 { type mark . ipv6_addr; }
add chain inet egressclass prerouting { type filter hook prerouting priority mangle; policy accept; }
add chain inet egressclass from_outside
add chain inet egressclass srcnat { type nat hook postrouting priority srcnat; policy accept; }
add chain inet egressclass guard { type filter hook postrouting priority srcnat + 200; policy accept; }
flush chain inet egressclass prerouting
flush chain inet egressclass from_outside
flush chain inet egressclass srcnat
flush chain inet egressclass guard
flush map inet egressclass snat4
flush map inet egressclass snat6
flush set inet egressclass sources4
flush set inet egressclass sources6
table inet egressclass {
  chain prerouting {
    meta mark 0 goto from_outside
    meta mark & NEW != 0 counter name untranslated drop
    ct state invalid counter name invalid drop
    ct mark 0 ct direction original ct mark set meta mark
CLAMP_OUT  }
  chain from_outside {
    ct direction reply ct mark & TUNNELED != 0 meta mark set TUNNELED
CLAMP_BACK    ct state established,related accept
    ct state invalid counter name invalid drop
    icmp type echo-request limit rate 100/second accept
    icmpv6 type echo-request limit rate 100/second accept
    meta l4proto tcp counter name unasked reject with tcp reset
    counter name unasked drop
  }
  chain srcnat {
    meta mark & ID != 0 snat ip to meta mark & ID map @snat4 fully-random
    meta mark & ID != 0 snat ip6 to meta mark & ID map @snat6 fully-random
  }
  chain guard {
    meta mark & ID == 0 accept
    meta mark & ID . ip saddr @sources4 accept
    meta mark & ID . ip6 saddr @sources6 accept
    iif 0 accept
    counter name wrong_source drop
  }
}
)";

/// Ids and egress IPs, by family.
class Elements {
 public:
  void add(const PlannedClass& c, const PlannedSlot& slot) {
    Family& family = slot.ip.is_v4() ? v4_ : v6_;
    family.snat.push_back(hex(slot.id) + " : " + slot.ip.str());
    for (const PlannedSlot& other : c.slots) family.sources.insert(hex(other.id) + " . " + slot.ip.str());
  }

  std::string text() const {
    std::string all;
    for (const auto& [digit, family] : {std::pair("4", v4_), std::pair("6", v6_)})
      all += add_elements(std::string("snat") + digit, family.snat) +
             add_elements(std::string("sources") + digit, {family.sources.begin(), family.sources.end()});
    return all;
  }

 private:
  struct Family {
    std::vector<std::string> snat;
    std::set<std::string> sources;
  };
  Family v4_;
  Family v6_;
};

}  // namespace

std::string gateway_ruleset(const Plan& plan, unsigned tunnel_mtu) {
  Elements elements;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) elements.add(c, slot);
  const std::string tunneled = hex(EC_MARK_TUNNELED);
  // A full segment and its tunnel have to fit into one packet of the uplink.
  return with_values(with_values(kRuleset, {{"CLAMP_OUT", clamp_mss("meta mark & TUNNELED != 0", tunnel_mtu)},
                                            {"CLAMP_BACK", clamp_mss("meta mark TUNNELED", tunnel_mtu)}}),
                     {{"ID", hex(EC_MARK_ID)}, {"NEW", hex(EC_MARK_NEW)}, {"TUNNELED", tunneled}}) +
         elements.text();
}

Status apply_gateway_rules(const Fd& netns, const Plan& plan, unsigned tunnel_mtu) {
  const auto there = InNetns::enter(netns, paths::kGatewayNetns);
  return there ? run_nft(gateway_ruleset(plan, tunnel_mtu)) : Status(there.error());
}

}  // namespace egressclass
