// SPDX-License-Identifier: Apache-2.0
#include "datapath/gateway_netns.h"

#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/magic.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/route/link.h>
#include <netlink/route/link/veth.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/route/rule.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "../bpf/egressclass.h"
#include "datapath/in_netns.h"
#include "datapath/ip_families.h"
#include "datapath/paths.h"
#include "datapath/system_changes.h"
#include "util/all_errors.h"
#include "util/file.h"

namespace egressclass {
namespace {

using LinkHandle = CHandle<rtnl_link, rtnl_link_put>;
using RouteHandle = CHandle<rtnl_route, rtnl_route_put>;
using RuleHandle = CHandle<rtnl_rule, rtnl_rule_put>;

constexpr const char* kOuter = paths::kGatewayDevice;
constexpr const char* kInner = "ec1";
constexpr const char* kPath = paths::kGatewayNetns;

/// For what has the mark of a reply to a pod of another node, and no other.
constexpr std::uint32_t kReturnTable = 8479;
constexpr std::uint32_t kReturnPriority = 84;

/// Of both ends: neither asks for neighbours (IFF_NOARP), so each writes its own address where the other's belongs.
constexpr Mac kMac = {0x02, 0xec, 0, 0, 0, 2};

/// One next hop for all destinations, on a device where none answers: a route without would make a neighbour entry of
/// each destination. 192.0.0.8/29 is the IPv4 Service Continuity Prefix (RFC 7335): no host outside has it.
constexpr const char* kNextHop4 = "192.0.0.9";
constexpr const char* kNextHop6 = "fe80::1";

struct Setting {
  const char* name;
  const char* value;
  bool optional = false;  ///< IPv6 may be off (ipv6.disable=1)
};

/// All that the way of a packet depends on. A new namespace has some of it from the first one, as that is then, and
/// some from nobody. In this order: ip_forward sets others.
constexpr std::array kSettings = {
    Setting{"net/ipv4/ip_forward", "1"},
    Setting{"net/ipv4/ip_forward_use_pmtu", "0"},
    Setting{"net/ipv4/conf/all/rp_filter", "0"},
    Setting{"net/ipv4/conf/default/rp_filter", "0"},
    Setting{"net/ipv4/conf/ec1/rp_filter", "0"},
    Setting{"net/ipv4/conf/ec1/forwarding", "1"},
    // What goes back by the device that it came by, which is everything, is no matter for a redirect.
    Setting{"net/ipv4/conf/all/send_redirects", "0"},
    Setting{"net/ipv4/conf/default/send_redirects", "0"},
    Setting{"net/ipv4/conf/ec1/send_redirects", "0"},
    Setting{"net/ipv4/conf/all/accept_redirects", "0"},
    Setting{"net/ipv4/conf/ec1/accept_redirects", "0"},
    Setting{"net/ipv4/conf/ec1/accept_source_route", "0"},
    // Without an address of its own the device has nothing to say; IPv6 has no switch for redirects but that.
    Setting{"net/ipv6/conf/ec1/addr_gen_mode", "1", true},
    Setting{"net/ipv6/conf/ec1/accept_ra", "0", true},
    Setting{"net/ipv6/conf/ec1/accept_redirects", "0", true},
    Setting{"net/ipv6/conf/all/disable_ipv6", "0", true},
    Setting{"net/ipv6/conf/default/disable_ipv6", "0", true},
    Setting{"net/ipv6/conf/lo/disable_ipv6", "0", true},
    Setting{"net/ipv6/conf/ec1/disable_ipv6", "0", true},
    Setting{"net/ipv6/conf/all/forwarding", "1", true},
    // Whoever decapsulates loses the word of the network card that a checksum is right: conntrack would add up each.
    Setting{"net/netfilter/nf_conntrack_checksum", "0"},
    Setting{"net/netfilter/nf_conntrack_tcp_be_liberal", "0"},
};

/// Of the host's end.
constexpr std::array kOuterSettings = {
    Setting{"net/ipv4/conf/ec0/forwarding", "1"},
    Setting{"net/ipv6/conf/ec0/addr_gen_mode", "1", true},
    Setting{"net/ipv6/conf/ec0/accept_ra", "0", true},
    Setting{"net/ipv6/conf/ec0/disable_ipv6", "0", true},
};

template <class Settings>
Status set_all(const Settings& settings) {
  for (const auto& [name, value, optional] : settings) {
    const auto present = read_sysctl(name);
    if (present ? *present == value : optional) continue;
    if (auto set = write_sysctl(name, value); !set) return set;
  }
  return Ok{};
}

template <class Settings>
void note_altered(const Settings& settings, const std::string& where, std::vector<std::string>& lines) {
  for (const auto& [name, value, optional] : settings)
    if (const auto present = read_sysctl(name); present ? *present != value : !optional)
      lines.push_back("sysctl " + std::string(name) + where + " is " + (present ? *present : "gone") +
                      " and has to be " + value + ": run `egressctl apply`");
}

/// What an operator has tuned for conntrack on this host.
std::map<std::string, std::string> conntrack_tuning() {
  constexpr const char* kFolder = "net/netfilter/";
  std::map<std::string, std::string> tuning;
  for (const std::string& name : names_in(std::string("/proc/sys/") + kFolder))
    if (name.starts_with("nf_conntrack_") &&
        (name.find("_timeout") != std::string::npos || name == "nf_conntrack_tcp_loose" ||
         name == "nf_conntrack_tcp_max_retrans" || name == "nf_conntrack_tcp_ignore_invalid_rst"))
      if (const auto value = read_sysctl(kFolder + name)) tuning[kFolder + name] = *value;
  return tuning;
}

Status tune_conntrack(const std::map<std::string, std::string>& tuning) {
  for (const auto& [name, value] : tuning)
    if (const auto present = read_sysctl(name); present && *present != value)
      if (auto set = write_sysctl(name, value); !set) return set;
  return Ok{};
}

/// Ours to remove, though not always to keep.
bool is_ours(const Link& link) { return link.kind == "veth" && link.mac == kMac; }

void describe(rtnl_link* link, const char* name, unsigned mtu) {
  const CHandle<nl_addr, nl_addr_put> mac(nl_addr_build(AF_LLC, kMac.data(), kMac.size()));
  rtnl_link_set_name(link, name);
  rtnl_link_set_mtu(link, mtu);
  rtnl_link_set_addr(link, mac.get());
  rtnl_link_set_flags(link, IFF_NOARP);
}

Status make_pair(const Netlink& netlink, const Fd& netns, unsigned mtu) {
  const LinkHandle outer(rtnl_link_veth_alloc());
  if (!outer) return make_error("cannot create the device of the gateway", "no memory");
  const LinkHandle inner(rtnl_link_veth_get_peer(outer.get()));
  describe(outer.get(), kOuter, mtu);
  describe(inner.get(), kInner, mtu);
  rtnl_link_set_ns_fd(inner.get(), netns.get());
  const int err = rtnl_link_add(netlink.socket(), outer.get(), NLM_F_CREATE | NLM_F_EXCL);
  return err < 0 ? Status(netlink_error("cannot create the device of the gateway", kOuter, err)) : Ok{};
}

/// The two ends, if they are what they should be, each where it should be.
Result<std::optional<std::pair<Link, Link>>> find_pair(const Netlink& netlink, const Netlink& inside, const Fd& netns) {
  using Pair = std::optional<std::pair<Link, Link>>;
  auto outer = netlink.link(kOuter);
  if (!outer) return outer.error();
  if (!*outer || !is_ours(**outer)) return Pair();
  auto inner = inside.link((*outer)->peer_ifindex);
  if (!inner) return inner.error();
  auto nsid = netlink.nsid(netns);
  if (!nsid) return nsid.error();
  if (*nsid < 0 || (*outer)->peer_nsid != *nsid || !*inner || (*inner)->name != kInner || !is_ours(**inner))
    return Pair();
  return Pair(std::pair(**outer, **inner));
}

Status remove_device(const Netlink& netlink, const char* name) {
  auto link = netlink.link(name);
  if (!link) return link.error();
  if (!*link) return Ok{};
  if (!is_ours(**link))
    return make_error("the device " + std::string(name) + " is not ours",
                      "kind \"" + (*link)->kind + "\", MAC " + mac_text((*link)->mac) + "; rename or remove it");
  return netlink.delete_link((*link)->ifindex);
}

Result<std::pair<Link, Link>> ensure_pair(const Netlink& netlink, const Netlink& inside, const Fd& netns,
                                          unsigned mtu) {
  auto found = find_pair(netlink, inside, netns);
  if (!found) return found.error();
  if (!*found) {
    if (auto removed = remove_device(netlink, kOuter); !removed) return removed.error();
    if (auto removed = remove_device(inside, kInner); !removed) return removed.error();
    if (auto made = make_pair(netlink, netns, mtu); !made) return made.error();
    found = find_pair(netlink, inside, netns);
    if (!found) return found.error();
    if (!*found) return make_error("the device of the gateway vanished", kOuter);
  }
  auto& [outer, inner] = **found;
  for (const auto& [where, link] : {std::pair(&netlink, &outer), std::pair(&inside, &inner)})
    if (link->mtu != mtu)
      if (auto set = where->set_mtu(link->ifindex, mtu); !set) return set.error();
  return std::move(**found);
}

/// `mtu` 0: that of the device.
RouteHandle default_route(int family, int ifindex, std::uint32_t table, unsigned mtu) {
  const bool v4 = family == AF_INET;
  RouteHandle route(rtnl_route_alloc());
  nl_addr* raw = nullptr;
  nl_addr_parse(v4 ? "0.0.0.0/0" : "::/0", family, &raw);
  const CHandle<nl_addr, nl_addr_put> anywhere(raw);
  nl_addr_parse(v4 ? kNextHop4 : kNextHop6, family, &raw);
  const CHandle<nl_addr, nl_addr_put> gateway(raw);
  rtnl_route_set_family(route.get(), static_cast<std::uint8_t>(family));
  rtnl_route_set_dst(route.get(), anywhere.get());
  rtnl_route_set_table(route.get(), table);
  rtnl_route_set_scope(route.get(), RT_SCOPE_UNIVERSE);
  rtnl_route_set_priority(route.get(), 1);
  if (mtu != 0) rtnl_route_set_metric(route.get(), RTAX_MTU, mtu);
  rtnl_nexthop* hop = rtnl_route_nh_alloc();
  rtnl_route_nh_set_ifindex(hop, ifindex);
  rtnl_route_nh_set_gateway(hop, gateway.get());
  rtnl_route_nh_set_flags(hop, RTNH_F_ONLINK);
  rtnl_route_add_nexthop(route.get(), hop);
  return route;
}

RuleHandle return_rule(int family) {
  RuleHandle rule(rtnl_rule_alloc());
  rtnl_rule_set_family(rule.get(), family);
  rtnl_rule_set_prio(rule.get(), kReturnPriority);
  rtnl_rule_set_action(rule.get(), FR_ACT_TO_TBL);
  rtnl_rule_set_mark(rule.get(), EC_MARK_TUNNELED);
  rtnl_rule_set_mask(rule.get(), UINT32_MAX);
  rtnl_rule_set_table(rule.get(), kReturnTable);
  return rule;
}

Status add_routes(const Netlink& inside, const Link& inner, unsigned tunnel_mtu) {
  const auto failed = [](int err) {
    return netlink_error("cannot add a route or rule of the gateway's namespace", kInner, err);
  };
  for (const int family : families_of(inner.mtu)) {
    for (const auto& [table, mtu] : {std::pair<std::uint32_t, unsigned>(RT_TABLE_MAIN, 0), {kReturnTable, tunnel_mtu}})
      if (const int err = rtnl_route_add(inside.socket(), default_route(family, inner.ifindex, table, mtu).get(),
                                         NLM_F_CREATE | NLM_F_REPLACE);
          err < 0)
        return failed(err);
    if (const int err = rtnl_rule_add(inside.socket(), return_rule(family).get(), NLM_F_CREATE | NLM_F_EXCL);
        err < 0 && err != -NLE_EXIST)
      return failed(err);
  }
  return Ok{};
}

bool has_default_route(const Netlink& inside, int family, int ifindex, std::uint32_t table) {
  nl_cache* raw = nullptr;
  if (rtnl_route_alloc_cache(inside.socket(), family, 0, &raw) < 0) return false;
  const CHandle<nl_cache, nl_cache_free> routes(raw);
  for (nl_object* o = nl_cache_get_first(raw); o != nullptr; o = nl_cache_get_next(o)) {
    auto* route = reinterpret_cast<rtnl_route*>(o);
    if (rtnl_route_get_table(route) == table && nl_addr_get_prefixlen(rtnl_route_get_dst(route)) == 0 &&
        rtnl_route_get_nnexthops(route) == 1 && rtnl_route_nh_get_ifindex(rtnl_route_nexthop_n(route, 0)) == ifindex)
      return true;
  }
  return false;
}

std::string outside_of_sandbox(int reason) {
  return reason == EPERM ? "run `egressctl netns` as root, outside of any sandbox" : "";
}

/// As ip-netns(8) has it: a mount of its own, and shared. Otherwise the next `ip netns add` would put one over it, and
/// the namespaces there would be mounted twice.
Status prepare_folder() {
  const std::string folder = std::filesystem::path(kPath).parent_path();
  std::error_code ec;
  std::filesystem::create_directories(folder, ec);
  if (ec) return system_error("cannot make the folder of network namespaces", folder, ec.value());
  if (::mount("", folder.c_str(), nullptr, MS_SHARED | MS_REC, nullptr) == 0) return Ok{};
  if (errno == EINVAL && ::mount(folder.c_str(), folder.c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0 &&
      ::mount("", folder.c_str(), nullptr, MS_SHARED | MS_REC, nullptr) == 0)
    return Ok{};
  return system_error("cannot prepare the folder of network namespaces", folder, errno, outside_of_sandbox(errno));
}

}  // namespace

/// A file of that name that is no namespace: somebody was interrupted when he made or removed it.
Result<Fd> open_gateway_netns() {
  Fd fd(::open(kPath, O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return Fd();
  if (!fd) return system_error("cannot open the network namespace", kPath, errno);
  struct statfs fs {};
  if (::fstatfs(fd.get(), &fs) != 0 || fs.f_type != NSFS_MAGIC) return Fd();
  return fd;
}

Status make_gateway_netns() {
  auto present = open_gateway_netns();
  if (!present) return present.error();
  if (*present) return Ok{};
  if (auto prepared = prepare_folder(); !prepared) return prepared;
  const Fd file(::open(kPath, O_RDONLY | O_CREAT | O_CLOEXEC, 0444));
  if (!file) return system_error("cannot make the network namespace", kPath, errno);
  const auto there = InNetns::enter_new(kPath);
  if (there && ::mount("/proc/thread-self/ns/net", kPath, nullptr, MS_BIND, nullptr) == 0) return Ok{};
  const Error failed = there
                           ? system_error("cannot make the network namespace", kPath, errno, outside_of_sandbox(errno))
                           : there.error();
  ::unlink(kPath);
  return failed;
}

Result<GatewayNetns> ensure_gateway_netns(const Netlink& netlink, unsigned mtu, unsigned tunnel_mtu, bool audited) {
  if (auto made = make_gateway_netns(); !made) return made.error();
  auto netns = open_gateway_netns();
  if (!netns) return netns.error();
  if (!*netns) return make_error("the network namespace vanished", kPath);
  auto inside = Netlink::open_in(*netns, kPath);
  if (!inside) return inside.error();
  auto pair = ensure_pair(netlink, *inside, *netns, mtu);
  if (!pair) return pair.error();
  const auto& [outer, inner] = *pair;
  if (auto set = set_all(kOuterSettings); !set) return set.error();
  auto tuning = conntrack_tuning();
  tuning["net/netfilter/nf_conntrack_acct"] = tuning["net/netfilter/nf_conntrack_timestamp"] = audited ? "1" : "0";
  tuning["net/netfilter/nf_conntrack_events"] = audited ? "1" : "2";  // 2: of flows that began when somebody listened
  {
    const auto there = InNetns::enter(*netns, kPath);
    if (!there) return there.error();
    if (auto set = set_all(kSettings); !set) return set.error();
    if (auto tuned = tune_conntrack(tuning); !tuned) return tuned.error();
  }
  for (const int ifindex : {kLoopbackIfindex, inner.ifindex})
    if (auto up = inside->set_up(ifindex, true); !up) return up.error();
  if (auto up = netlink.set_up(outer.ifindex, true); !up) return up.error();
  if (auto added = add_routes(*inside, inner, tunnel_mtu); !added) return added.error();
  return GatewayNetns{std::move(*netns), outer.ifindex, inner.ifindex};
}

Status remove_gateway_netns(const Netlink& netlink) {
  AllErrors errors;
  // The device first: while a process is inside, the namespace outlives its name.
  auto outer = netlink.link(kOuter);
  errors.add(outer);
  if (outer && *outer && is_ours(**outer)) errors.add(netlink.delete_link((*outer)->ifindex));
  if (::umount2(kPath, MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT) {
    if (errno != EPERM) errors.add(system_error("cannot remove the network namespace", kPath, errno));
    return errors.status();
  }
  if (::unlink(kPath) != 0 && errno != ENOENT)
    errors.add(system_error("cannot remove the network namespace", kPath, errno));
  return errors.status();
}

std::vector<std::string> gateway_netns_faults(const Netlink& netlink) {
  const auto netns = open_gateway_netns();
  if (!netns) return {netns.error().msg + ": " + netns.error().details};
  if (!*netns) return {std::string("the network namespace ") + kPath + " is gone: run `egressctl apply`"};
  const auto inside = Netlink::open_in(*netns, kPath);
  if (!inside) return {inside.error().msg + ": " + inside.error().details};
  const auto pair = find_pair(netlink, *inside, *netns);
  if (!pair) return {pair.error().msg + ": " + pair.error().details};
  if (!*pair)
    return {std::string("the devices ") + kOuter + " and " + kInner + " do not lead into " + kPath +
            ": run `egressctl apply`"};
  std::vector<std::string> lines;
  const auto& [outer, inner] = **pair;
  for (const Link* link : {&outer, &inner})
    if (!link->up) lines.push_back("the device " + link->name + " is down");
  note_altered(kOuterSettings, "", lines);
  const auto there = InNetns::enter(*netns, kPath);
  if (!there) return {there.error().msg + ": " + there.error().details};
  note_altered(kSettings, " of the gateway's namespace", lines);
  for (const int family : families_of(inner.mtu))
    for (const std::uint32_t table : {static_cast<std::uint32_t>(RT_TABLE_MAIN), kReturnTable})
      if (!has_default_route(*inside, family, inner.ifindex, table))
        lines.push_back(std::string("the ") + (family == AF_INET ? "IPv4" : "IPv6") + " default route in table " +
                        std::to_string(table) + " of the gateway's namespace is missing: run `egressctl apply`");
  return lines;
}

}  // namespace egressclass
