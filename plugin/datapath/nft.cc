// SPDX-License-Identifier: Apache-2.0
#include "datapath/nft.h"

#include <nftables/libnftables.h>

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
 * A mark on a multicast packet is no mark: the kernel's own IGMP and MLD reports use the field for something else
 * (sk_buff: `mark` and `reserved_tailroom` are a union). Classes never get multicast.
 *
 * prerouting takes the pending bit off what the BPF programs marked (core/mark.h): without this table, say after a
 * `flush ruleset`, such packets are not routed at all.
 *
 * srcnat runs before the common priority 100: the node's own masquerading finds the flow translated, and leaves it.
 */
constexpr const char* kRuleset = R"(
add table inet egressclass
add counter inet egressclass wrong_source
add counter inet egressclass not_a_reply
add counter inet egressclass invalid
add map inet egressclass snat4 { type mark : ipv4_addr; }
add set inet egressclass sources4 { type mark . ipv4_addr; }
add set inet egressclass egress4 { type ipv4_addr; }
add chain inet egressclass prerouting { type filter hook prerouting priority mangle; policy accept; }
add chain inet egressclass verify_reply
add chain inet egressclass forward { type filter hook forward priority filter - 5; policy accept; }
add chain inet egressclass srcnat { type nat hook postrouting priority srcnat - 10; policy accept; }
add chain inet egressclass guard { type filter hook postrouting priority srcnat + 200; policy accept; }
flush chain inet egressclass prerouting
flush chain inet egressclass verify_reply
flush chain inet egressclass forward
flush chain inet egressclass srcnat
flush chain inet egressclass guard
flush map inet egressclass snat4
flush set inet egressclass sources4
flush set inet egressclass egress4
table inet egressclass {
  chain prerouting {
    meta mark & MASK == REPLY goto verify_reply
    meta mark & PENDING != 0 meta mark set meta mark & APPROVED
    iifname "DEVICE" ct direction original ct mark set meta mark & MASK
    iifname != "DEVICE" ct direction reply ct mark & MASK != 0 ct reply ip daddr @egress4 meta mark set meta mark | RETURN
  }
  chain verify_reply {
    ct state invalid,untracked counter name not_a_reply drop
    ct direction original ct state != related counter name not_a_reply drop
    meta mark set meta mark & OTHERS
  }
  chain forward {
    meta mark & MASK == 0 accept
    ct state invalid counter name invalid drop
CLAMP  }
  chain srcnat {
    ip daddr 224.0.0.0/4 accept
    meta mark & MASK != 0 snat ip to meta mark & MASK map @snat4
  }
  chain guard {
    meta mark & MASK == { 0, RETURN } accept
    ip daddr 224.0.0.0/4 accept
    ip6 daddr ff00::/8 accept
    meta mark & MASK . ip saddr @sources4 accept
    counter name wrong_source drop
  }
}
)";

}  // namespace

std::string nft_ruleset(const Plan& plan, unsigned tunnel_mtu) {
  std::string elements;
  std::set<Ip> egress_ips;
  for (const PlannedClass& c : plan.classes) {
    if (!c.local) continue;
    const std::string mark = hex(c.mark);
    const std::string ip = c.egress_ip.str();
    elements.append("add element inet egressclass snat4 { ").append(mark + " : " + ip + " }\n");
    elements.append("add element inet egressclass sources4 { ").append(mark + " . " + ip + " }\n");
    egress_ips.insert(c.egress_ip);
  }
  for (const Ip& ip : egress_ips) elements += "add element inet egressclass egress4 { " + ip.str() + " }\n";

  std::string clamp;
  if (tunnel_mtu != 0)  // a full segment and its 50 bytes of tunnel have to fit into one packet of the uplink
    for (const char* direction : {"iifname", "oifname"})
      clamp += std::string("    ") + direction +
               " \"DEVICE\" tcp flags & (syn | rst) == syn tcp option maxseg size set " +
               std::to_string(tunnel_mtu - kIpTcpHeaders) + "\n";
  return replace_all(replace_all(kRuleset, {{"CLAMP", clamp}}), {{"APPROVED", hex(~pending_mark(plan.mark_mask))},
                                                                 {"DEVICE", paths::kTunnelDevice},
                                                                 {"MASK", hex(plan.mark_mask)},
                                                                 {"OTHERS", hex(~plan.mark_mask)},
                                                                 {"PENDING", hex(pending_mark(plan.mark_mask))},
                                                                 {"REPLY", hex(reply_mark(plan.mark_mask))},
                                                                 {"RETURN", hex(return_mark(plan.mark_mask))}}) +
         elements;
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
