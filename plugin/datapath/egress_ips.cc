// SPDX-License-Identifier: Apache-2.0
#include "datapath/egress_ips.h"

#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>

#include <set>

#include "datapath/device_program.h"
#include "datapath/maps.h"
#include "datapath/paths.h"
#include "datapath/plan_maps.h"
#include "util/all_errors.h"

namespace egressclass {
namespace {

using RouteHandle = CHandle<rtnl_route, rtnl_route_put>;
using NeighbourHandle = CHandle<rtnl_neigh, rtnl_neigh_put>;

constexpr const char* kUplinkIn = "uplink_in";

RouteHandle route_to(const Ip& ip, int ifindex) {
  RouteHandle route(rtnl_route_alloc());
  const auto to = nl_address(ip);
  rtnl_route_set_family(route.get(), ip.is_v4() ? AF_INET : AF_INET6);
  rtnl_route_set_dst(route.get(), to.get());
  rtnl_route_set_table(route.get(), RT_TABLE_MAIN);
  rtnl_route_set_scope(route.get(), ip.is_v4() ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE);
  rtnl_nexthop* hop = rtnl_route_nh_alloc();
  rtnl_route_nh_set_ifindex(hop, ifindex);
  rtnl_route_add_nexthop(route.get(), hop);
  return route;
}

Status add_route(const Netlink& netlink, const Ip& ip, int ec0) {
  const int err = rtnl_route_add(netlink.socket(), route_to(ip, ec0).get(), NLM_F_CREATE | NLM_F_EXCL);
  return err < 0 && err != -NLE_EXIST ? Status(netlink_error("cannot add the route to egress IP", ip.str(), err))
                                      : Ok{};
}

Status remove_route(const Netlink& netlink, const Ip& ip, int ec0) {
  const int err = rtnl_route_delete(netlink.socket(), route_to(ip, ec0).get(), 0);
  return err < 0 && err != -NLE_OBJ_NOTFOUND && err != -NLE_NODEV
             ? Status(netlink_error("cannot remove the route to egress IP", ip.str(), err))
             : Ok{};
}

/// IPv6 hosts ask a multicast group, for which a network card has to be told that somebody listens. A proxy entry of
/// the kernel's neighbour table joins the group (RFC 4861, 7.2.8) and gives no interface an address. IPv4 asks all.
Status listen_for(const Netlink& netlink, const Ip& ip, int ifindex, bool listen) {
  if (ip.is_v4()) return Ok{};
  const NeighbourHandle proxy(rtnl_neigh_alloc());
  const auto address = nl_address(ip);
  rtnl_neigh_set_family(proxy.get(), AF_INET6);
  rtnl_neigh_set_ifindex(proxy.get(), ifindex);
  rtnl_neigh_set_dst(proxy.get(), address.get());
  rtnl_neigh_set_flags(proxy.get(), NTF_PROXY);
  const int err = listen ? rtnl_neigh_add(netlink.socket(), proxy.get(), NLM_F_CREATE)
                         : rtnl_neigh_delete(netlink.socket(), proxy.get(), 0);
  const bool is_so_already = err == -NLE_EXIST || (!listen && (err == -NLE_OBJ_NOTFOUND || err == -NLE_NODEV));
  if (err >= 0 || is_so_already) return Ok{};
  return netlink_error(listen ? "cannot listen for those who ask for" : "cannot end to listen for those who ask for",
                       ip.str(), err);
}

std::set<int> interfaces_of(const std::map<Ip, int>& ifindex_of) {
  std::set<int> ifindexes;
  for (const auto& [ip, ifindex] : ifindex_of) ifindexes.insert(ifindex);
  return ifindexes;
}

Status place(const Netlink& netlink, const Netlink& inside, const GatewayNetns& gateway,
             const std::map<Ip, int>& wanted) {
  auto listed = inside.addresses(kLoopbackIfindex);
  if (!listed) return listed.error();
  std::set<Ip> present;
  for (const InterfaceAddress& address : *listed) present.insert(address.ip);
  for (const auto& [ip, ifindex] : wanted) {
    if (!present.contains(ip))
      if (auto added = inside.add_address(kLoopbackIfindex, ip); !added) return added;
    if (auto routed = add_route(netlink, ip, gateway.ec0); !routed) return routed;
    if (auto listening = listen_for(netlink, ip, ifindex, true); !listening) return listening;
  }
  return Ok{};
}

/// Before they leave the map, which is what a second try goes by.
Status take_away(const Netlink& netlink, const Netlink& inside, const GatewayNetns& gateway,
                 const std::map<Ip, int>& present, const std::map<Ip, int>& wanted) {
  for (const auto& [ip, ifindex] : present) {
    const auto stays = wanted.find(ip);
    if (stays != wanted.end() && stays->second == ifindex) continue;
    if (auto silent = listen_for(netlink, ip, ifindex, false); !silent) return silent;
    if (stays != wanted.end()) continue;
    if (auto removed = remove_route(netlink, ip, gateway.ec0); !removed) return removed;
    if (auto removed = inside.delete_address(kLoopbackIfindex, ip); !removed) return removed;
  }
  const std::set<int> used = interfaces_of(wanted);
  for (const int ifindex : interfaces_of(present))
    if (!used.contains(ifindex))
      if (auto released = release_program_named(kUplinkIn, ifindex); !released) return released;
  return Ok{};
}

}  // namespace

std::map<Ip, int> held_egress_ips() {
  std::map<Ip, int> held;
  auto map = open_egress_ips_map();
  auto entries = map ? map->entries() : Result<std::vector<std::pair<ec_ip, ec_egress_ip>>>(map.error());
  if (!entries) return held;
  for (const auto& [ip, entry] : *entries) held[from_ec(ip)] = static_cast<int>(entry.ifindex);
  return held;
}

std::map<Ip, int> egress_ips_of(const Plan& plan) {
  std::map<Ip, int> ifindex_of;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) ifindex_of[slot.ip] = slot.ifindex;
  return ifindex_of;
}

Status hold_egress_ips(const Netlink& netlink, const GatewayNetns& gateway, const Programs& programs,
                       const Plan& plan) {
  auto inside = Netlink::open_in(gateway.netns, paths::kGatewayNetns);
  if (!inside) return inside.error();
  const auto wanted = egress_ips_of(plan);
  if (auto placed = place(netlink, *inside, gateway, wanted); !placed) return placed;
  for (const int ifindex : interfaces_of(wanted))
    if (auto held = hold_program(programs.uplink_in.get(), ifindex, 0); !held) return held;
  if (auto gone = take_away(netlink, *inside, gateway, held_egress_ips(), wanted); !gone) return gone;
  return write_egress_ips(plan);
}

Status release_egress_ips(const Netlink& netlink) {
  AllErrors errors;
  for (const auto& [ip, ifindex] : held_egress_ips()) errors.add(listen_for(netlink, ip, ifindex, false));
  const CHandle<struct if_nameindex, if_freenameindex> interfaces(if_nameindex());
  for (const auto* i = interfaces.get(); i != nullptr && i->if_index != 0; ++i)
    errors.add(release_program_named(kUplinkIn, static_cast<int>(i->if_index)));
  if (auto map = open_egress_ips_map()) {
    auto keys = map->keys();
    errors.add(keys);
    if (keys)
      for (const ec_ip& key : *keys) errors.add(map->erase(key));
  }
  return errors.status();
}

}  // namespace egressclass
