// SPDX-License-Identifier: Apache-2.0
#include "datapath/nft.h"

#include <nftables/libnftables.h>

#include <set>
#include <vector>

#include "core/mark.h"
#include "datapath/paths.h"
#include "util/c_handle.h"
#include "util/json.h"
#include "util/text.h"

namespace egressclass {
namespace {

using Context = CHandle<nft_ctx, nft_ctx_free>;

constexpr const char* kTable = "inet egressclass";
constexpr unsigned kIpTcpHeaders = 40;
constexpr unsigned kIp6TcpHeaders = 60;

/// Runs one transaction; the error is nft's own text.
Status run(nft_ctx* context, const std::string& commands) {
  if (context == nullptr) return make_error("cannot use nftables", "no memory for its context");
  nft_ctx_buffer_output(context);
  nft_ctx_buffer_error(context);
  if (nft_run_cmd_from_buffer(context, commands.c_str()) != 0)
    return make_error("nftables refused the change", nft_ctx_get_error_buffer(context));
  return Ok{};
}

std::string replace_all(std::string text, const std::map<std::string, std::string>& values) {
  for (const auto& [name, value] : values)
    for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos; at += value.size())
      text.replace(at, name.size(), value);
  return text;
}

/*
 * Chains are flushed and filled within the transaction, so each packet meets the old rules or the new. Counters are
 * objects of their own: adding one that exists keeps its value. Sets and maps are flushed likewise.
 *
 * prerouting takes the pending bit off what the BPF programs marked (core/mark.h): without this table, say after a
 * `flush ruleset`, such packets are not routed at all.
 *
 * The ct mark of a flow is the mark that its first packet had, which is that of one of its class's egress IPs here, and
 * the pending bit for "came through the tunnel"; replies of the latter are led back there. The packets that follow may
 * have the mark of another egress IP of the class: `sources` has every mark of a class with every egress IP of it.
 *
 * Pods have no business with the tunnel's port: masqueraded to the node's address, a packet to it would be a tunnel
 * packet of a known sender. What the tunnel sends is never forwarded, it is local.
 *
 * output leads ICMP errors about tunnelled flows that this gateway itself makes (fragmentation needed, time exceeded)
 * back the way their replies go.
 *
 * srcnat runs before the common priority 100: the node's own masquerading finds the flow translated, and leaves it.
 * Ports are taken at random: from a pod's own port on, the kernel would give up within a run of taken ones.
 *
 * What is for the cluster has its last destination in its header: with a source route, a node that honours it would
 * send it on to the outside.
 *
 * What IPVS takes for a service comes in for the host (the service's address is the host's) and leaves from there, with
 * the device that it came in by, and is never forwarded: guard verifies it instead of forward. IPVS does not always
 * tell conntrack that it has changed the destination, and the mark is for cluster destinations: that must hold in any
 * case.
 *
 * srcnat and guard are for what is forwarded. Local programs may use the same bits for their own ends (iif 0), and on
 * multicast a mark is no mark: the kernel's IGMP and MLD reports use the field for something else (sk_buff: `mark` and
 * `reserved_tailroom` are a union).
 */
constexpr const char* kRuleset = R"(
add table inet egressclass
add counter inet egressclass wrong_source
add counter inet egressclass not_a_reply
add counter inet egressclass invalid
add counter inet egressclass service_outside
add counter inet egressclass source_route
add counter inet egressclass tunnel_from_pod
add counter inet egressclass mark_lost
add map inet egressclass snat4 { type mark : ipv4_addr; }
add map inet egressclass snat6 { type mark : ipv6_addr; }
add set inet egressclass sources4 { type mark . ipv4_addr; }
add set inet egressclass sources6 { type mark . ipv6_addr; }
add set inet egressclass egress4 { type ipv4_addr; }
add set inet egressclass egress6 { type ipv6_addr; }
add set inet egressclass nodes4 { type ipv4_addr; flags interval; auto-merge; }
add set inet egressclass nodes6 { type ipv6_addr; flags interval; auto-merge; }
add set inet egressclass never4 { type ipv4_addr; flags interval; auto-merge; }
add set inet egressclass never6 { type ipv6_addr; flags interval; auto-merge; }
add chain inet egressclass prerouting { type filter hook prerouting priority mangle; policy accept; }
add chain inet egressclass verify_reply
add chain inet egressclass verify_bypass
add chain inet egressclass verify_local_bypass
add chain inet egressclass forward { type filter hook forward priority filter - 5; policy accept; }
add chain inet egressclass output { type route hook output priority mangle; policy accept; }
add chain inet egressclass srcnat { type nat hook postrouting priority srcnat - 10; policy accept; }
add chain inet egressclass guard { type filter hook postrouting priority srcnat + 200; policy accept; }
flush chain inet egressclass prerouting
flush chain inet egressclass verify_reply
flush chain inet egressclass verify_bypass
flush chain inet egressclass verify_local_bypass
flush chain inet egressclass forward
flush chain inet egressclass output
flush chain inet egressclass srcnat
flush chain inet egressclass guard
flush map inet egressclass snat4
flush map inet egressclass snat6
flush set inet egressclass sources4
flush set inet egressclass sources6
flush set inet egressclass egress4
flush set inet egressclass egress6
flush set inet egressclass nodes4
flush set inet egressclass nodes6
flush set inet egressclass never4
flush set inet egressclass never6
table inet egressclass {
  chain prerouting {
    meta mark & MASK == REPLY goto verify_reply
    iifname "DEVICE" ct direction original ct mark & MASK == 0 ct mark set meta mark & MASK | PENDING
    iifname != "DEVICE" meta mark & PENDING != 0 ct direction original ct mark & MASK == 0 ct mark set meta mark & RETURN
    meta mark & PENDING != 0 meta mark set meta mark & APPROVED
    iifname != "DEVICE" ct direction reply ct mark & PENDING != 0 ct reply ip daddr @egress4 meta mark set meta mark | RETURN
    iifname != "DEVICE" ct direction reply ct mark & PENDING != 0 ct reply ip6 daddr @egress6 meta mark set meta mark | RETURN
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
    iifname "DEVICE" meta mark & MASK == 0 counter name mark_lost drop
    meta mark & MASK == 0 accept
    meta mark & MASK == BYPASS goto verify_bypass
    ct state invalid counter name invalid drop
CLAMP  }
  chain output {
    ct state related ct direction reply ct mark & PENDING != 0 meta mark set meta mark | RETURN
  }
  chain srcnat {
    iif 0 accept
    ip daddr 224.0.0.0/4 accept
    ip6 daddr ff00::/8 accept
    meta mark & MASK != 0 snat ip to meta mark & MASK map @snat4 fully-random
    meta mark & MASK != 0 snat ip6 to meta mark & MASK map @snat6 fully-random
  }
  chain guard {
    meta mark & MASK == { 0, RETURN } accept
    iif 0 accept
    ip daddr 224.0.0.0/4 accept
    ip6 daddr ff00::/8 accept
    meta mark & MASK == BYPASS goto verify_local_bypass
    meta mark & MASK . ip saddr @sources4 accept
    meta mark & MASK . ip6 saddr @sources6 accept
    counter name wrong_source drop
  }
}
)";

/// One `add element` for all of them; nothing for none.
std::string add_elements(const std::string& set, const std::vector<std::string>& elements) {
  std::string list;
  for (const std::string& element : elements) list.append(list.empty() ? "" : ", ").append(element);
  return list.empty() ? list : "add element inet egressclass " + set + " { " + list + " }\n";
}

std::vector<std::string> prefixes_of_family(const std::set<Prefix>& prefixes, bool v4) {
  std::vector<std::string> texts;
  for (const Prefix& prefix : prefixes)
    if (prefix.ip.is_v4() == v4) texts.push_back(prefix.str());
  return texts;
}

/// Marks and egress IPs, by family.
class Elements {
 public:
  void add(const PlannedClass& c, const PlannedSlot& slot) {
    Family& family = slot.ip.is_v4() ? v4_ : v6_;
    family.snat.push_back(hex(slot.mark) + " : " + slot.ip.str());
    family.egress.insert(slot.ip.str());
    family.sources.insert(hex(c.mark) + " . " + slot.ip.str());
    for (const PlannedSlot& other : c.slots) family.sources.insert(hex(other.mark) + " . " + slot.ip.str());
  }

  std::string text() const {
    std::string all;
    for (const auto& [digit, family] : {std::pair("4", v4_), std::pair("6", v6_)})
      all += add_elements(std::string("snat") + digit, family.snat) +
             add_elements(std::string("sources") + digit, {family.sources.begin(), family.sources.end()}) +
             add_elements(std::string("egress") + digit, {family.egress.begin(), family.egress.end()});
    return all;
  }

 private:
  struct Family {
    std::vector<std::string> snat;
    std::set<std::string> sources;
    std::set<std::string> egress;
  };
  Family v4_;
  Family v6_;
};

}  // namespace

std::string nft_ruleset(const Plan& plan, unsigned tunnel_mtu) {
  Elements elements;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) elements.add(c, slot);

  std::string clamp;
  if (tunnel_mtu != 0)  // a full segment and its tunnel have to fit into one packet of the uplink
    for (const char* direction : {"iifname", "oifname"})
      for (const auto& [family, headers] : {std::pair("ipv4", kIpTcpHeaders), std::pair("ipv6", kIp6TcpHeaders)})
        clamp += std::string("    ") + direction + " \"DEVICE\" meta nfproto " + family +
                 " tcp flags & (syn | rst) == syn tcp option maxseg size set " + std::to_string(tunnel_mtu - headers) +
                 "\n";
  const std::uint32_t mask = plan.mark_mask;
  return replace_all(replace_all(kRuleset, {{"CLAMP", clamp}}), {{"APPROVED", hex(~pending_mark(mask))},
                                                                 {"BYPASS", hex(bypass_mark(mask))},
                                                                 {"DEVICE", paths::kTunnelDevice},
                                                                 {"MASK", hex(mask)},
                                                                 {"OTHERS", hex(~mask)},
                                                                 {"PENDING", hex(pending_mark(mask))},
                                                                 {"PORT", std::to_string(plan.tunnel_port)},
                                                                 {"REPLY", hex(reply_mark(mask))},
                                                                 {"RETURN", hex(return_mark(mask))}}) +
         elements.text() + add_elements("nodes4", prefixes_of_family(plan.senders, true)) +
         add_elements("nodes6", prefixes_of_family(plan.senders, false)) +
         add_elements("never4", prefixes_of_family(plan.never_steered, true)) +
         add_elements("never6", prefixes_of_family(plan.never_steered, false));
}

Status apply_nft(const Plan& plan, unsigned tunnel_mtu) {
  const Context context(nft_ctx_new(NFT_CTX_DEFAULT));
  return run(context.get(), nft_ruleset(plan, tunnel_mtu));
}

Status remove_nft() {
  const Context context(nft_ctx_new(NFT_CTX_DEFAULT));
  // `delete` of a missing table is an error, `add` of an existing one is not.
  return run(context.get(), std::string("add table ") + kTable + "\ndelete table " + kTable + "\n");
}

Result<std::map<std::string, NftCounter>> read_nft_counters() {
  const Context context(nft_ctx_new(NFT_CTX_DEFAULT));
  if (context) nft_ctx_output_set_flags(context.get(), NFT_CTX_OUTPUT_JSON);
  if (auto listed = run(context.get(), std::string("list counters table ") + kTable); !listed) return listed.error();
  std::map<std::string, NftCounter> counters;
  auto json = parse_json(nft_ctx_get_output_buffer(context.get()));
  if (!json) return json.error();
  try {
    for (const Json& entry : json->at("nftables"))
      if (const Json* counter = find_member(entry, "counter"))
        counters[counter->at("name").get<std::string>()] = {counter->at("packets").get<std::uint64_t>(),
                                                            counter->at("bytes").get<std::uint64_t>()};
  } catch (const nlohmann::json::exception& e) {
    return make_error("unexpected output of nftables", e.what());
  }
  return counters;
}

}  // namespace egressclass
