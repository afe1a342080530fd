// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <span>
#include <string>

#include "cni/codes.h"
#include "core/applied.h"
#include "core/mark.h"
#include "ctl/commands.h"
#include "ctl/drift.h"
#include "ctl/table.h"
#include "datapath/attachment_store.h"
#include "datapath/bpf_link.h"
#include "datapath/bpf_object.h"
#include "datapath/counters.h"
#include "datapath/device_program.h"
#include "datapath/egress_ips.h"
#include "datapath/flows.h"
#include "datapath/gateway_netns.h"
#include "datapath/in_netns.h"
#include "datapath/integrity.h"
#include "datapath/link_pins.h"
#include "datapath/maps.h"
#include "datapath/netlink.h"
#include "datapath/nft_table.h"
#include "datapath/node_datapath.h"
#include "datapath/orphans.h"
#include "datapath/pod_datapath.h"
#include "datapath/programs.h"
#include "datapath/system_changes.h"
#include "datapath/tunnel.h"
#include "util/json.h"
#include "util/lock.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

/// What keeps this node from doing its job: a line each, and each once; empty when all is well.
class Health {
 public:
  void expect(bool good, const std::string& otherwise) {
    if (!good && std::ranges::find(problems_, otherwise) == problems_.end()) problems_.push_back(otherwise);
  }
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  std::vector<std::string> problems_;
};

/// Whether the link holds that program of ours on the interface.
bool link_is_on(const std::string& pin, const char* program, int ifindex) {
  auto link = read_link(pin);
  const Fd wanted(bpf_obj_get((std::string(paths::kProgramPins) + "/" + program).c_str()));
  auto id = program_id(wanted.get());
  return link && *link && (*link)->ifindex == ifindex && id && (*link)->program_id == *id;
}

/// Of a machine that is no router otherwise, apply makes one: of IPv4 interface by interface, of IPv6 as a whole, since
/// there the kernel asks no single interface.
void check_forwarding(const std::string& interface, bool v4, Health& health) {
  const std::string conf = v4 ? "ipv4/conf/" + interface : "ipv6/conf/all";
  const std::string shown = v4 ? "ipv4.conf." + interface : "ipv6.conf.all";
  const auto forwarding = read_sysctl("net/" + conf + "/forwarding");
  health.expect(forwarding && *forwarding != "0", (v4 ? interface + " does not forward" : "IPv6 is not forwarded") +
                                                      ": somebody set net." + shown + ".forwarding to 0");
}

void check_tunnel(const Netlink& netlink, const ec_node& node, Health& health) {
  if (node.tunnel_ifindex == 0) return;  // no classes
  const int ifindex = static_cast<int>(node.tunnel_ifindex);
  auto link = netlink.link(ifindex);
  if (!link || !*link || (*link)->name != paths::kTunnelDevice) {
    health.expect(false, "the tunnel device egress0 is gone");
    return;
  }
  health.expect((*link)->up, "the tunnel device egress0 is down");
  health.expect(link_is_on(kTunnelInPin, "tunnel_in", ifindex), "tunnel_in is not attached to egress0");
  health.expect(link_is_on(kTunnelOutPin, "tunnel_out", ifindex), "tunnel_out is not attached to egress0");
  health.expect(
      routes_exist(netlink, node.mark_mask, {ifindex, node.tunnel_mtu}),
      "a rule or the route to egress0 is missing: run `egressctl apply`, and see whether systemd-networkd took it "
      "away (ManageForeignRoutingPolicyRules=)");
  check_forwarding((*link)->name, true, health);
}

void check_nexthops(const Netlink& netlink, Health& health) {
  auto map = open_classes_map();
  const auto classes = map ? map->entries() : Result<std::vector<std::pair<__u32, ec_class>>>(map.error());
  if (!classes) return;
  std::set<int> ifindexes;
  for (const auto& [id, entry] : *classes)
    for (const ec_hop& hop : std::span(entry.hops).first(std::min<std::size_t>(entry.hop_count, EC_MAX_HOPS)))
      if (hop.path == EC_PATH_NEXTHOP) ifindexes.insert(static_cast<int>(hop.ifindex));
  for (const int ifindex : ifindexes) {
    auto link = netlink.link(ifindex);
    const bool there = link && *link;
    health.expect(there, "the interface towards a next hop is gone (ifindex " + std::to_string(ifindex) + ")");
    if (!there) continue;
    health.expect((*link)->up, (*link)->name + ", the interface towards a next hop, is down");
    health.expect(link_is_on(nexthop_pin(ifindex), "nexthop_in", ifindex),
                  "nexthop_in is not attached to " + (*link)->name);
  }
}

bool program_is_on(const char* program, int ifindex) {
  const Fd wanted(bpf_obj_get((std::string(paths::kProgramPins) + "/" + program).c_str()));
  const auto id = program_id(wanted.get());
  const auto on = id ? holds_program(*id, ifindex) : Result<bool>(false);
  return on && *on;
}

void check_gateway(const Netlink& netlink, const ec_node& node, Health& health) {
  if (node.gateway_ifindex == 0) return;
  const auto faults = gateway_netns_faults(netlink);
  for (const std::string& fault : faults) health.expect(false, fault);
  const auto device = netlink.link(paths::kGatewayDevice);
  if (!device || !*device) return;
  const auto& ec0 = **device;
  health.expect(ec0.ifindex == static_cast<int>(node.gateway_ifindex),
                ec0.name + " is another one than at the last apply: run `egressctl apply`");
  health.expect(program_is_on("gateway_out", ec0.ifindex), "gateway_out is not attached to " + ec0.name);
  const auto netns = open_gateway_netns();
  const auto there =
      netns && *netns ? InNetns::enter(*netns, paths::kGatewayNetns) : Result<InNetns>(make_error("no namespace"));
  if (!there) return;
  health.expect(program_is_on("gateway_in", ec0.peer_ifindex),
                "gateway_in is not attached to ec1, in the gateway's namespace");
  health.expect(static_cast<bool>(read_nft_counters()),
                "the nft table `inet egressclass` of the gateway's namespace is missing");
  const auto inside = Netlink::open();
  const auto addresses =
      inside ? inside->addresses(kLoopbackIfindex) : Result<std::vector<InterfaceAddress>>(inside.error());
  if (!addresses) return;
  std::set<Ip> present;
  for (const InterfaceAddress& address : *addresses) present.insert(address.ip);
  for (const auto& [ip, ifindex] : held_egress_ips())
    health.expect(present.contains(ip), "egress IP " + ip.str() + " is no address of the gateway's namespace any more");
}

void check_egress_ips(const Netlink& netlink, Health& health) {
  std::set<int> seen;
  for (const auto& [ip, ifindex] : held_egress_ips()) {
    auto link = netlink.link(ifindex);
    const bool there = link && *link;
    health.expect(there,
                  "the interface of egress IP " + ip.str() + " is gone (ifindex " + std::to_string(ifindex) + ")");
    if (!there) continue;
    check_forwarding((*link)->name, ip.is_v4(), health);
    if (seen.insert(ifindex).second)
      health.expect(program_is_on("uplink_in", ifindex), "uplink_in is not attached to " + (*link)->name);
    health.expect((*link)->up, (*link)->name + " is down: no reply to egress IP " + ip.str() + " comes by it");
  }
}

void check_integrity(Health& health) {
  const auto altered = altered_objects();
  health.expect(static_cast<bool>(altered), "it is not known what was applied last: run `egressctl apply`");
  if (!altered) return;
  for (const std::string& object : *altered)
    health.expect(false, object + " is not what was applied: somebody changed it; run `egressctl apply`");
}

std::string gateway_state(const ec_gateway& gateway) {
  if (gateway.unanswered >= EC_PROBES_UNANSWERED) return "unreachable";
  return gateway.last_seen_ns == 0 ? "unused" : "reachable";
}

Json gateways_json() {
  Json list = Json::array();
  auto map = open_gateways_map();
  auto keys = map ? map->keys() : Result<std::vector<ec_ip>>(map.error());
  if (!keys) return list;
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  for (const ec_ip& key : *keys) {
    auto gateway = map->find(key);
    if (!gateway || !*gateway) continue;
    const double seconds = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9 -
                           static_cast<double>((*gateway)->last_seen_ns) / 1e9;
    list.push_back({{"address", from_ec(key).str()},
                    {"state", gateway_state(**gateway)},
                    {"lastSeenSecondsAgo", (*gateway)->last_seen_ns == 0 ? Json() : Json(seconds)}});
  }
  return list;
}

/// The address by which the other nodes know this one.
Json underlay_json(const ec_node& node) {
  for (const ec_ip& underlay : {node.underlay4, node.underlay6})
    if (const Ip ip = from_ec(underlay); ip != Ip{}) return ip.str();
  return {};
}

const char* path_name(__u32 path) {
  switch (path) {
    case EC_PATH_LOCAL:
      return "local";
    case EC_PATH_TUNNEL:
      return "tunnel";
    default:
      return "nexthop";
  }
}

Json hops_json(const ec_class& entry) {
  Json list = Json::array();
  for (const ec_hop& hop : std::span(entry.hops).first(std::min<std::size_t>(entry.hop_count, EC_MAX_HOPS)))
    list.push_back({{"address", from_ec(hop.address).str()},
                    {"path", path_name(hop.path)},
                    {"ipv4", (hop.families & EC_IPV4) != 0},
                    {"ipv6", (hop.families & EC_IPV6) != 0}});
  return list;
}

/// Of this node.
Json slots_json(const ec_class& entry) {
  Json list = Json::array();
  for (const ec_slots* slots : {&entry.slots4, &entry.slots6})
    for (const ec_slot& slot : std::span(slots->slot).first(std::min<std::size_t>(slots->count, EC_MAX_SLOTS)))
      list.push_back({{"address", from_ec(slot.ip).str()}, {"mark", hex(slot.id)}});
  return list;
}

Json classes_json(const Applied& applied, const std::vector<Attachment>& attachments, const Counters& counters) {
  Json list = Json::array();
  auto map = open_classes_map();
  for (const ClassConfig& c : applied.selection.classes) {
    const std::uint32_t id = applied.ids.at(c.name);
    auto entry = map ? map->find(id) : Result<std::optional<ec_class>>(map.error());
    if (!entry || !*entry) continue;
    Json events = Json::object();
    for (const auto& [key, counter] : counters)
      if (key.first == id && !is_drop(key.second))
        events[event_name(key.second)] = {{"packets", counter.packets}, {"bytes", counter.bytes}};
    list.push_back({{"name", c.name},
                    {"mark", hex((*entry)->mark)},
                    {"vni", (*entry)->vni},
                    {"role", (*entry)->slots4.count + (*entry)->slots6.count != 0 ? "gateway" : "worker"},
                    {"gateways", hops_json(**entry)},
                    {"egressIPs", slots_json(**entry)},
                    {"pods", std::ranges::count(attachments, c.name, &Attachment::class_name)},
                    {"traffic", events}});
  }
  return list;
}

/// What the kernel's own parts have dropped.
struct NftDrops {
  std::map<std::string, NftCounter> counters;
  std::uint64_t flows_not_entered = 0;
};

NftDrops read_nft_drops() {
  NftDrops drops;
  if (auto host = read_nft_counters()) drops.counters = std::move(*host);
  const auto netns = open_gateway_netns();
  if (!netns || !*netns) return drops;
  const auto there = InNetns::enter(*netns, paths::kGatewayNetns);
  if (!there) return drops;
  if (auto gateway = read_nft_counters()) drops.counters.merge(*gateway);
  if (auto failed = flows_not_entered()) drops.flows_not_entered = *failed;
  return drops;
}

/// The kernel counts what it drops for want of a port by packets.
Json drops_json(const Applied& applied, const Counters& counters, const NftDrops& nft) {
  Json list = Json::array();
  const auto name_of = [&](std::uint32_t id) -> Json {
    for (const auto& [name, class_id] : applied.ids)
      if (class_id == id) return name;
    return {};
  };
  for (const auto& [key, counter] : counters)
    if (is_drop(key.second) && counter.packets != 0)
      list.push_back({{"reason", event_name(key.second)},
                      {"class", name_of(key.first)},
                      {"packets", counter.packets},
                      {"bytes", counter.bytes}});
  for (const auto& [name, counter] : nft.counters)
    if (counter.packets != 0)
      list.push_back({{"reason", name}, {"class", Json()}, {"packets", counter.packets}, {"bytes", counter.bytes}});
  if (nft.flows_not_entered != 0)
    list.push_back(
        {{"reason", "nat_exhausted"}, {"class", Json()}, {"packets", nft.flows_not_entered}, {"bytes", Json()}});
  return list;
}

std::string cell(const Json& value) { return value.is_string() ? value.get<std::string>() : dump_json(value); }

std::string addresses_of(const Json& list) {
  std::string text;
  for (const Json& entry : list) text += (text.empty() ? "" : ",") + cell(entry["address"]);
  return text.empty() ? "-" : text;
}

constexpr const char* kUnderWay =
    "not known: `egressctl apply` or `down` is under way, and what follows may be half of what it does; ask again";

void print_tables(const Json& status) {
  std::printf("datapath  %s\n", status["healthy"].is_null()     ? kUnderWay
                                : status["healthy"].get<bool>() ? "healthy"
                                                                : "NOT HEALTHY");
  for (const Json& problem : status["problems"]) std::printf("          %s\n", cell(problem).c_str());
  std::printf("node      %s\npods      %s with a class\n\n", cell(status["node"]).c_str(),
              cell(status["pods"]).c_str());
  Table classes({"CLASS", "ROLE", "GATEWAYS", "EGRESS IPS HERE", "MARK", "VNI", "PODS"});
  for (const Json& c : status["classes"])
    classes.add({cell(c["name"]), cell(c["role"]), addresses_of(c["gateways"]), addresses_of(c["egressIPs"]),
                 cell(c["mark"]), cell(c["vni"]), cell(c["pods"])});
  classes.print();
  if (!status["gateways"].empty()) {
    std::printf("\n");
    Table gateways({"GATEWAY", "STATE"});
    for (const Json& gateway : status["gateways"]) gateways.add({cell(gateway["address"]), cell(gateway["state"])});
    gateways.print();
  }
  std::printf("\n");
  Table traffic({"CLASS", "TRAFFIC", "PACKETS", "BYTES"});
  for (const Json& c : status["classes"])
    for (const auto& [event, counter] : c["traffic"].items())
      traffic.add({cell(c["name"]), event, cell(counter["packets"]), cell(counter["bytes"])});
  traffic.print();
  std::printf("\n");
  Table drops({"DROPPED", "CLASS", "PACKETS", "BYTES"});
  for (const Json& drop : status["drops"])
    drops.add({cell(drop["reason"]), drop["class"].is_null() ? "" : cell(drop["class"]), cell(drop["packets"]),
               drop["bytes"].is_null() ? "" : cell(drop["bytes"])});
  drops.print();
}

/// With the node's lock shared.
void check_node(const Netlink& netlink, const std::optional<ec_node>& node, bool has_state_file,
                const std::vector<Attachment>& attachments, Health& health) {
  health.expect(node.has_value(), "nothing is applied on this node: run `egressctl apply`");
  health.expect(!node || node->applied != 0, "the datapath is down; traffic of pods with a class is dropped");
  if (node && node->applied != 0) {
    check_tunnel(netlink, *node, health);
    check_nexthops(netlink, health);
    check_gateway(netlink, *node, health);
    check_egress_ips(netlink, health);
    health.expect(pins_are_intact(), "BPF maps or programs are not pinned as they were applied: run `egressctl apply`");
    health.expect(static_cast<bool>(read_nft_counters()), "the nft table `inet egressclass` is missing");
    check_integrity(health);
    health.expect(has_state_file, "the state file for the plugin is missing or broken: run `egressctl apply`");
    for (const std::string& line : drift(netlink, attachments)) health.expect(false, line);
  }
  for (const Attachment& attachment : attachments)
    if (auto checked = check_pod(attachment); !checked)
      health.expect(false,
                    "pod " + attachment.pod.name_space + "/" + attachment.pod.name + ": " + checked.error().details);
  if (auto orphans = find_orphans(netlink, attachments))
    for (const Orphan& orphan : *orphans) health.expect(orphan.host_veth.empty(), orphan.text());
}

}  // namespace

int status(bool json) {
  // An apply under way would show half of itself, but must not hold up who asks.
  constexpr int kPatienceMs = 2000;
  const auto lock = state_exists() ? lock_node(LockMode::kShared, kPatienceMs) : Result<Fd>(Fd());
  if (!lock && lock.error().code != codes::kTryAgainLater) return fail(lock.error());
  const bool under_way = !lock;

  const auto node = read_node();
  auto applied = read_applied();
  auto netlink = Netlink::open();
  if (!netlink) return fail(netlink.error());
  const auto attachments = list_attachments();
  Health health;
  if (!under_way) check_node(*netlink, node, applied && *applied, attachments, health);

  Counters counters;
  if (node)
    if (auto read = read_counters()) counters = *read;
  const Applied none;
  const Applied& in_force = applied && *applied ? **applied : none;
  const Json status = {
      {"healthy", under_way ? Json() : Json(health.problems().empty())},
      {"problems", health.problems()},
      {"node", node ? underlay_json(*node) : Json()},
      {"pods", attachments.size()},
      {"classes", classes_json(in_force, attachments, counters)},
      {"gateways", gateways_json()},
      {"drops", drops_json(in_force, counters, read_nft_drops())},
  };
  if (json)
    std::printf("%s\n", dump_json(status).c_str());
  else
    print_tables(status);
  if (under_way) return kNotYet;
  return health.problems().empty() ? kSuccess : kFailure;
}

}  // namespace egressclass::ctl
