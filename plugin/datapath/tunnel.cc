// SPDX-License-Identifier: Apache-2.0
#include "datapath/tunnel.h"

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/route/link.h>
#include <netlink/route/link/vxlan.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/route/rule.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <map>
#include <string>
#include <vector>

#include "core/mark.h"
#include "datapath/bpf_link.h"
#include "datapath/ip_families.h"
#include "datapath/link_pins.h"
#include "datapath/paths.h"
#include "datapath/route_lookup.h"
#include "datapath/system_changes.h"
#include "util/all_errors.h"

namespace egressclass {
namespace {

using LinkHandle = CHandle<rtnl_link, rtnl_link_put>;
using RuleHandle = CHandle<rtnl_rule, rtnl_rule_put>;
using RouteHandle = CHandle<rtnl_route, rtnl_route_put>;

constexpr unsigned kVxlanBytes = 50;   // IPv4, UDP, VXLAN, inner Ethernet
constexpr unsigned kVxlan6Bytes = 70;  // the same with IPv6
constexpr std::uint32_t kTable = 8479;
constexpr std::uint32_t kRulePriority = 84;  // before the rules of cloud CNIs for pod addresses (AWS: 512)
constexpr std::uint32_t kLastMetric = 0xffffffff;
constexpr const char* kDevice = paths::kTunnelDevice;

/// The source address of a tunneled packet begins with 02:ed: it is never that of the device which receives it, and
/// which would refuse its own. See tunnel_macs() in bpf/tunnel.h.
constexpr Mac kDeviceMac = {0x02, 0xec, 0, 0, 0, 1};

/// IPv4 dummy address (RFC 7600): reverse path filtering, also the loose kind, refuses all that comes by a device
/// without an address.
constexpr const char* kDummyAddress = "192.0.0.8";

bool is_ours(const Link& link) {
  return link.kind == "vxlan" && link.mac[0] == kDeviceMac[0] && link.mac[1] == kDeviceMac[1];
}

Result<bool> is_as_wanted(const Netlink& netlink, const Link& link, const Plan& plan) {
  if (!is_ours(link))
    return make_error("the device egress0 is not ours",
                      "kind \"" + link.kind + "\", MAC " + mac_text(link.mac) + "; rename or remove it");
  rtnl_link* raw = nullptr;
  if (const int err = rtnl_link_get_kernel(netlink.socket(), link.ifindex, nullptr, &raw); err < 0)
    return netlink_error("cannot read link", kDevice, err);
  const LinkHandle owner(raw);
  std::uint32_t port = 0;
  rtnl_link_vxlan_get_port(raw, &port);
  return rtnl_link_vxlan_get_collect_metadata(raw) == 1 && port == plan.tunnel_port;
}

/// The message is built here, since libnl sends the port as four bytes, of which the kernel says so in its log.
Status create_device(const Netlink& netlink, const Plan& plan, unsigned mtu) {
  const CHandle<nl_msg, nlmsg_free> message(nlmsg_alloc_simple(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL));
  if (!message) return make_error("cannot create the tunnel device", "no memory");
  nl_msg* m = message.get();
  ifinfomsg header{};
  header.ifi_flags = header.ifi_change = IFF_NOARP;  // the programs write the MAC addresses
  bool fits = nlmsg_append(m, &header, sizeof(header), NLMSG_ALIGNTO) == 0 &&
              nla_put_string(m, IFLA_IFNAME, kDevice) == 0 && nla_put_u32(m, IFLA_MTU, mtu) == 0 &&
              nla_put(m, IFLA_ADDRESS, kDeviceMac.size(), kDeviceMac.data()) == 0;
  nlattr* info = nla_nest_start(m, IFLA_LINKINFO);
  fits = fits && info != nullptr && nla_put_string(m, IFLA_INFO_KIND, "vxlan") == 0;
  nlattr* data = nla_nest_start(m, IFLA_INFO_DATA);
  fits = fits && data != nullptr && nla_put_u8(m, IFLA_VXLAN_COLLECT_METADATA, 1) == 0 &&
         nla_put_u8(m, IFLA_VXLAN_LEARNING, 0) == 0 && nla_put_u16(m, IFLA_VXLAN_PORT, htons(plan.tunnel_port)) == 0;
  if (!fits) return make_error("cannot create the tunnel device", "the message is too small");
  nla_nest_end(m, data);
  nla_nest_end(m, info);
  int err = nl_send_auto(netlink.socket(), m);
  if (err >= 0) err = nl_wait_for_ack(netlink.socket());
  return err < 0 ? Status(netlink_error("cannot create the tunnel device", kDevice, err)) : Ok{};
}

/// A device that cannot listen on its port stays down: then another one, or a program, has the port.
Status set_device_up(const Netlink& netlink, int ifindex, const Plan& plan) {
  auto up = netlink.set_up(ifindex, true);
  if (up) return up;
  Error error = up.error();
  error.msg = "cannot set the tunnel device up";
  error.details = std::string(kDevice) + ": " + error.details + "; is UDP port " + std::to_string(plan.tunnel_port) +
                  " in use (another VXLAN device, a program)? see `tunnel.port` in the configuration";
  return error;
}

constexpr unsigned kIpv4MinimumMtu = 68;  // RFC 791

/// Of the families that the plan wants in the tunnel.
Status check_mtu(const Plan& plan, unsigned mtu) {
  const bool wants_ipv6 = std::ranges::any_of(plan.classes, [](const PlannedClass& c) {
    return std::ranges::any_of(c.hops, [](const PlannedHop& hop) { return hop.path != Path::kNextHop && hop.v6; });
  });
  const unsigned least = wants_ipv6 ? kIpv6MinimumMtu : kIpv4MinimumMtu;
  if (mtu >= least) return Ok{};
  return make_error("the uplink's MTU is too small for the tunnel",
                    std::to_string(mtu) + " bytes are left of it, and " + (wants_ipv6 ? "IPv6" : "IPv4") + " needs " +
                        std::to_string(least) + ": raise it by " + std::to_string(least - mtu) +
                        (wants_ipv6 ? ", or give no class an IPv6 egress IP" : ""));
}

Status set_device_sysctls(unsigned mtu) {
  const std::string ipv4 = std::string("net/ipv4/conf/") + kDevice + "/";
  auto all = read_sysctl("net/ipv4/conf/all/rp_filter");
  if (!all) return all.error();
  // Pods' addresses have no route through egress0. The stricter of `all` and the device counts, except that 2 wins
  // over 1.
  if (auto set = write_sysctl(ipv4 + "rp_filter", *all == "0" ? "0" : "2"); !set) return set;
  if (auto set = write_sysctl(ipv4 + "forwarding", "1"); !set) return set;
  if (!has_ipv6(mtu)) return Ok{};
  // Packets are routed there; but the device itself has nothing to say.
  const std::string ipv6 = std::string("net/ipv6/conf/") + kDevice + "/";
  if (auto set = write_sysctl(ipv6 + "addr_gen_mode", "1"); !set) return set;
  return write_sysctl(ipv6 + "disable_ipv6", "0");
}

/// What nft has not seen is routed to egress0, where tunnel_out drops it. Local programs may use the pending bit for
/// their own ends: for them, the rule in between is skipped.
std::array<RuleHandle, 3> rules(int family, std::uint32_t mark_mask) {
  const auto a_rule = [family](std::uint32_t priority, std::uint8_t action, std::uint32_t mark, std::uint32_t mask) {
    RuleHandle rule(rtnl_rule_alloc());
    rtnl_rule_set_family(rule.get(), family);
    rtnl_rule_set_prio(rule.get(), priority);
    rtnl_rule_set_action(rule.get(), action);
    if (mask != 0) rtnl_rule_set_mark(rule.get(), mark);
    if (mask != 0) rtnl_rule_set_mask(rule.get(), mask);
    if (action == FR_ACT_TO_TBL) rtnl_rule_set_table(rule.get(), kTable);
    return rule;
  };
  const std::uint32_t pending = pending_mark(mark_mask);
  RuleHandle skip = a_rule(kRulePriority - 1, FR_ACT_GOTO, pending, pending);
  rtnl_rule_set_iif(skip.get(), "lo");
  rtnl_rule_set_goto(skip.get(), kRulePriority + 1);
  return {a_rule(kRulePriority + 1, FR_ACT_NOP, 0, 0), std::move(skip),
          a_rule(kRulePriority, FR_ACT_TO_TBL, pending, pending)};
}

RouteHandle default_route(int family, std::uint8_t type, std::uint32_t metric) {
  RouteHandle route(rtnl_route_alloc());
  CHandle<nl_addr, nl_addr_put> anywhere(nl_addr_alloc(family == AF_INET ? 4 : 16));
  nl_addr_set_family(anywhere.get(), family);
  nl_addr_set_prefixlen(anywhere.get(), 0);
  rtnl_route_set_family(route.get(), static_cast<std::uint8_t>(family));
  rtnl_route_set_dst(route.get(), anywhere.get());
  rtnl_route_set_table(route.get(), kTable);
  rtnl_route_set_type(route.get(), type);
  rtnl_route_set_priority(route.get(), metric);
  return route;
}

/// Without egress0 the table must not be empty: the next rules would send the packets anywhere.
RouteHandle last_route(int family) { return default_route(family, RTN_BLACKHOLE, kLastMetric); }

bool is_absent(int err) { return err == -NLE_OBJ_NOTFOUND || err == -NLE_NOADDR; }

Status ensure_last_way(const Netlink& netlink, int family, std::uint32_t mark_mask, int ifindex) {
  const RouteHandle last = last_route(family);
  const RouteHandle route = default_route(family, RTN_UNICAST, 1);
  rtnl_route_set_scope(route.get(), family == AF_INET ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE);
  rtnl_nexthop* hop = rtnl_route_nh_alloc();
  rtnl_route_nh_set_ifindex(hop, ifindex);
  rtnl_route_add_nexthop(route.get(), hop);
  for (rtnl_route* wanted : {last.get(), route.get()})
    if (const int err = rtnl_route_add(netlink.socket(), wanted, NLM_F_CREATE | NLM_F_REPLACE); err < 0)
      return netlink_error("cannot add a route to egress0", "table " + std::to_string(kTable), err);
  for (const RuleHandle& rule : rules(family, mark_mask))
    if (const int err = rtnl_rule_add(netlink.socket(), rule.get(), NLM_F_CREATE | NLM_F_EXCL);
        err < 0 && err != -NLE_EXIST)
      return netlink_error("cannot add a rule for egress0", "priority " + std::to_string(kRulePriority), err);
  return Ok{};
}

Status remove_last_way(const Netlink& netlink, int family, std::uint32_t mark_mask) {
  for (const RuleHandle& rule : rules(family, mark_mask))
    if (const int err = rtnl_rule_delete(netlink.socket(), rule.get(), 0); err < 0 && !is_absent(err))
      return netlink_error("cannot remove a rule for egress0", "priority " + std::to_string(kRulePriority), err);
  const RouteHandle last = last_route(family);
  if (const int err = rtnl_route_delete(netlink.socket(), last.get(), 0); err < 0 && !is_absent(err))
    return netlink_error("cannot remove a route to egress0", "table " + std::to_string(kTable), err);
  return Ok{};
}

/// The longest packet that this node can send to the others from its underlay address, which may be on another
/// interface than those by which it sends (on `lo`, where the host itself routes).
Result<unsigned> underlay_mtu(const Netlink& netlink, const Plan& plan, const Underlay& underlay) {
  auto link = netlink.link(underlay.ifindex);
  if (!link) return link.error();
  if (!*link) return make_error("the uplink is gone", "ifindex " + std::to_string(underlay.ifindex));
  std::map<int, unsigned> mtu_of = {{underlay.ifindex, (*link)->mtu}};
  unsigned mtu = (*link)->mtu;

  const auto routes = RouteLookup::open();
  if (!routes) return routes.error();
  for (const Prefix& sender : plan.senders) {
    if (sender.ip.is_v4() != underlay.ip.is_v4()) continue;
    const auto route = routes->find(underlay.ip, sample_of(sender));
    if (!route || !*route) continue;  // which is for others to say
    if (!mtu_of.contains((*route)->ifindex)) {
      auto uplink = netlink.link((*route)->ifindex);
      if (!uplink) return uplink.error();
      mtu_of[(*route)->ifindex] = *uplink ? (*uplink)->mtu : UINT_MAX;
    }
    mtu = std::min({mtu, mtu_of[(*route)->ifindex], (*route)->mtu != 0 ? (*route)->mtu : UINT_MAX});
  }
  return mtu;
}

}  // namespace

Result<unsigned> tunnel_mtu(const Netlink& netlink, const Plan& plan) {
  unsigned least = UINT16_MAX;
  for (const auto& underlay : {plan.underlay4, plan.underlay6}) {
    if (!underlay) continue;
    auto mtu = underlay_mtu(netlink, plan, *underlay);
    if (!mtu) return mtu.error();
    least = std::min(least, *mtu - std::min(*mtu, underlay->ip.is_v4() ? kVxlanBytes : kVxlan6Bytes));
  }
  return least;
}

Result<Tunnel> ensure_tunnel(const Netlink& netlink, const Plan& plan, const Programs& programs) {
  auto mtu = tunnel_mtu(netlink, plan);
  if (!mtu) return mtu.error();
  if (auto enough = check_mtu(plan, *mtu); !enough) return enough.error();

  auto link = netlink.link(kDevice);
  if (!link) return link.error();
  if (*link) {
    auto good = is_as_wanted(netlink, **link, plan);
    if (!good) return good.error();
    if (!*good || (*link)->mtu != *mtu) {
      if (auto deleted = netlink.delete_link((*link)->ifindex); !deleted) return deleted.error();
      *link = std::nullopt;
    }
  }
  if (!*link) {
    if (auto created = create_device(netlink, plan, *mtu); !created) return created.error();
    link = netlink.link(kDevice);
    if (!link) return link.error();
    if (!*link) return make_error("the tunnel device vanished", kDevice);
  }

  const int ifindex = (*link)->ifindex;
  if (auto set = set_device_sysctls(*mtu); !set) return set.error();
  if (auto added = netlink.add_address(ifindex, *Ip::parse(kDummyAddress), AddressScope::kHost); !added)
    return added.error();
  // Programs before traffic: without tunnel_in a packet of any sender would be routed.
  if (auto done = attach_link(programs.tunnel_in.get(), ifindex, Hook::kIngress, kTunnelInPin); !done)
    return done.error();
  if (auto done = attach_link(programs.tunnel_out.get(), ifindex, Hook::kEgress, kTunnelOutPin); !done)
    return done.error();
  if (auto up = set_device_up(netlink, ifindex, plan); !up) return up.error();
  for (const int family : families_of(*mtu))
    if (auto routed = ensure_last_way(netlink, family, plan.mark_mask, ifindex); !routed) return routed.error();
  return Tunnel{ifindex, *mtu};
}

Status remove_tunnel(const Netlink& netlink, std::uint32_t mark_mask) {
  AllErrors errors;
  for (const int family : families_of(kIpv6MinimumMtu)) errors.add(remove_last_way(netlink, family, mark_mask));
  auto link = netlink.link(kDevice);
  errors.add(link);
  if (link && *link && is_ours(**link)) errors.add(netlink.delete_link((*link)->ifindex));  // its route goes with it
  for (const char* pin : {kTunnelInPin, kTunnelOutPin}) errors.add(remove_link(pin));
  return errors.status();
}

namespace {

bool routes_exist(const Netlink& netlink, int family, std::uint32_t mark_mask, int tunnel_ifindex) {
  nl_cache* raw = nullptr;
  if (rtnl_rule_alloc_cache(netlink.socket(), family, &raw) < 0) return false;
  const CHandle<nl_cache, nl_cache_free> present_rules(raw);
  const auto wanted_rules = rules(family, mark_mask);
  std::size_t rules_found = 0;
  for (nl_object* o = nl_cache_get_first(raw); o != nullptr; o = nl_cache_get_next(o)) {
    auto* rule = reinterpret_cast<rtnl_rule*>(o);
    if (rtnl_rule_get_family(rule) != family) continue;  // libnl lists those of all
    for (const RuleHandle& wanted : wanted_rules)
      rules_found += rtnl_rule_get_prio(rule) == rtnl_rule_get_prio(wanted.get()) &&
                             rtnl_rule_get_action(rule) == rtnl_rule_get_action(wanted.get()) &&
                             rtnl_rule_get_mark(rule) == rtnl_rule_get_mark(wanted.get()) &&
                             rtnl_rule_get_mask(rule) == rtnl_rule_get_mask(wanted.get())
                         ? 1
                         : 0;
  }
  if (rtnl_route_alloc_cache(netlink.socket(), family, 0, &raw) < 0) return false;
  const CHandle<nl_cache, nl_cache_free> routes(raw);
  bool route_found = false;
  for (nl_object* o = nl_cache_get_first(raw); o != nullptr; o = nl_cache_get_next(o)) {
    auto* route = reinterpret_cast<rtnl_route*>(o);
    if (rtnl_route_get_table(route) != kTable || rtnl_route_get_nnexthops(route) == 0) continue;
    route_found |= rtnl_route_nh_get_ifindex(rtnl_route_nexthop_n(route, 0)) == tunnel_ifindex;
  }
  return rules_found == wanted_rules.size() && route_found;
}

}  // namespace

bool routes_exist(const Netlink& netlink, std::uint32_t mark_mask, const Tunnel& tunnel) {
  return std::ranges::all_of(families_of(tunnel.mtu),
                             [&](int family) { return routes_exist(netlink, family, mark_mask, tunnel.ifindex); });
}

}  // namespace egressclass
