// SPDX-License-Identifier: Apache-2.0
#include "datapath/explanation.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <span>
#include <utility>

#include "datapath/counters.h"
#include "datapath/maps.h"
#include "util/text.h"

namespace egressclass {
namespace {

struct Rule {
  Prefix prefix;
  ec_rule entry;
};

/// Whether the kernel finds a rule is the kernel's word; which one it is, is not to be had of it.
Result<std::optional<Rule>> find_rule(std::uint32_t ruleset, const Ip& ip) {
  auto map = open_rules_map();
  if (!map) return map.error();
  const ec_rule_key key = {.prefixlen = 32 + 128, .tree = EC_TREE(ruleset, ip.is_v4() ? 1U : 0U), .ip = to_ec(ip)};
  auto found = map->find(key);
  if (!found) return found.error();
  if (!*found) return std::optional<Rule>();
  auto entries = map->entries();
  if (!entries) return entries.error();
  if ((*found)->verdict == EC_OTHERWISE) return std::optional<Rule>(Rule{Prefix{ip, 0}, **found});
  Rule longest{Prefix{ip, 0}, **found};
  for (const auto& [entry_key, entry] : *entries) {
    const Prefix prefix{from_ec(entry_key.ip), entry_key.prefixlen - 32};
    if (entry_key.tree == key.tree && prefix.contains(ip) && prefix.length >= longest.prefix.length)
      longest.prefix = prefix;
  }
  return std::optional<Rule>(longest);
}

Result<std::optional<bool>> in_port_set(std::uint32_t port_set, const Target& to) {
  auto map = open_ports_map();
  if (!map) return map.error();
  const ec_port_key key = {.prefixlen = EC_PORT_BITS + (to.has_ports() ? 16U : 0U),
                           .port_set = port_set,
                           .proto = *to.protocol,
                           .port = htons(to.port.value_or(0))};
  auto found = map->find(key);
  if (!found) return found.error();
  return *found ? std::optional<bool>(**found != 0) : std::nullopt;
}

/// As the configuration writes it; empty: it does not have it.
std::string port_rule_text(const ClassConfig* c, const Prefix& prefix, const Target& to) {
  if (c == nullptr) return {};
  const int protocol = *to.protocol == IPPROTO_ICMPV6 ? static_cast<int>(IPPROTO_ICMP) : *to.protocol;
  for (const Destination& destination : c->destinations)
    if (destination.prefix == prefix)
      for (const PortRule& rule : destination.ports)
        if (rule.protocol == protocol && rule.first <= to.port.value_or(0) && to.port.value_or(0) <= rule.last)
          return rule.str();
  return {};
}

/// Of one packet, as the questions are put one after the other.
class Explainer {
 public:
  Explainer(const Attachment& pod, const Ip& source, const Target& to, std::optional<std::uint16_t> source_port,
            const Config& applied)
      : pod_(pod), source_(source), to_(to), source_port_(source_port), config_(applied.find(pod.class_name)) {}

  Result<Explanation> explain() {
    auto known = ask_source();
    if (!known || ended()) return finish(known);
    auto steered = ask_never_steered();
    if (!steered || ended()) return finish(steered);
    auto class_there = ask_class();
    if (!class_there || ended()) return finish(class_there);
    auto matches = ask_rules();
    if (!matches || ended()) return finish(matches);
    ask_family();
    if (ended()) return finish(Ok{});
    return finish(ask_gateway());
  }

 private:
  bool ended() const { return e_.event.has_value() || !e_.gateways.empty(); }

  void step(std::string text) { e_.steps.push_back(std::move(text)); }

  void end(ec_event event, std::string text) {
    e_.event = event;
    step(std::move(text));
  }

  Result<Explanation> finish(const Status& status) {
    if (!status) return status.error();
    return e_;
  }

  bool stays_on_link() const {
    const auto& b = to_.address.bytes;
    if (to_.address.is_v4())
      return to_.address.is_link_local() || (b[12] & 0xf0U) == 0xe0 || to_.address.v4() == 0xffffffffU;
    return b[0] == 0xff || to_.address.is_link_local();
  }

  Status ask_source() {
    auto attachments = open_attachments_map();
    if (!attachments) return attachments.error();
    auto attachment = attachments->find(static_cast<__u32>(pod_.host_ifindex));
    if (!attachment) return attachment.error();
    const auto node = read_node();
    if (!*attachment || !node) {
      end(EC_DROP_NO_ATTACHMENT, "dropped: host veth " + pod_.host_veth + " has no entry in the map `attachments`");
      return Ok{};
    }
    node_ = *node;
    class_id_ = (*attachment)->class_id;
    if (stays_on_link()) {
      end(EC_BYPASSED, "not touched: link-local, multicast and broadcast never leave the link");
      return Ok{};
    }
    auto endpoints = open_endpoints_map();
    if (!endpoints) return endpoints.error();
    auto endpoint = endpoints->find(to_ec(source_));
    if (!endpoint) return endpoint.error();
    if (!*endpoint || (*endpoint)->ifindex != static_cast<__u32>(pod_.host_ifindex))
      end(EC_DROP_SPOOFED, "dropped: " + source_.str() + " is no address of the pod");
    return Ok{};
  }

  Status ask_never_steered() {
    auto rule = find_rule(EC_RULESET_NEVER, to_.address);
    if (!rule) return rule.error();
    if (!*rule) {
      rules_missing();
    } else if ((*rule)->entry.verdict != EC_OTHERWISE) {
      e_.rule = (*rule)->prefix;
      end(EC_BYPASSED, "not touched: " + (*rule)->prefix.str() + " is the cluster's, a node's, or an egress IP");
    }
    return Ok{};
  }

  Status ask_class() {
    if (node_.applied == 0) {
      end(EC_DROP_DATAPATH_DOWN, "dropped: no configuration is applied on this node");
      return Ok{};
    }
    auto classes = open_classes_map();
    if (!classes) return classes.error();
    auto entry = classes->find(class_id_);
    if (!entry) return entry.error();
    if (*entry)
      class_ = **entry;
    else
      end(EC_DROP_CLASS_REMOVED, "dropped: class " + pod_.class_name + " is configured no more; restart the pod");
    return Ok{};
  }

  Status ask_rules() {
    auto found = find_rule(class_.ruleset, to_.address);
    if (!found) return found.error();
    const bool drops = (class_.flags & EC_OTHERWISE_DROP) != 0;
    if (!*found) {
      rules_missing();
      return Ok{};
    }
    if ((*found)->entry.verdict == EC_OTHERWISE) {
      otherwise("no destination of the class matches", drops);
      return Ok{};
    }
    const Rule& rule = **found;
    e_.rule = rule.prefix;
    const std::string prefix = rule.prefix.str();
    if (rule.entry.verdict != EC_STEER) {
      end(EC_BYPASSED, "not touched: \"except\" " + prefix + " is the longest prefix that matches");
      return Ok{};
    }
    if (rule.entry.port_set == 0) {
      step("destination " + prefix + " is the longest prefix that matches, with all ports");
      return Ok{};
    }
    if (!to_.protocol || (to_.has_ports() && !to_.port))
      return make_error("the answer depends on protocol and port",
                        "destination " + prefix + " is for some of them: ask for ADDR:PORT/PROTO, or ADDR/icmp");
    auto listed = in_port_set(rule.entry.port_set, to_);
    if (!listed) return listed.error();
    if (!*listed) {
      rules_missing();
    } else if (**listed) {
      const std::string text = port_rule_text(config_, rule.prefix, to_);
      step("destination " + prefix + " is the longest prefix that matches, port rule " +
           (text.empty() ? "of an earlier configuration" : text));
    } else {
      otherwise("destination " + prefix + " is the longest prefix that matches, but none of its port rules does",
                drops);
    }
    return Ok{};
  }

  void rules_missing() {
    end(EC_DROP_RULES_MISSING, "dropped: the destinations are not in the maps; run `egressctl apply`");
  }

  void otherwise(const std::string& what, bool drops) {
    end(drops ? EC_DROP_OTHERWISE : EC_BYPASSED,
        what + ", and \"otherwise\" is " + (drops ? "\"drop\": dropped" : "\"bypass\": not touched"));
  }

  void ask_family() {
    const bool v4 = to_.address.is_v4();
    if ((class_.families & (v4 ? EC_IPV4 : EC_IPV6)) != 0) return;
    const bool bypass = (class_.flags & EC_OTHER_FAMILY_BYPASS) != 0;
    end(bypass ? EC_BYPASSED : EC_DROP_FAMILY, std::string("no gateway of the class can send ") +
                                                   (v4 ? "IPv4" : "IPv6") + ", and \"otherFamily\" is " +
                                                   (bypass ? "\"bypass\": not touched" : "\"drop\": dropped"));
  }

  std::span<const ec_hop> hops() const {
    return std::span(class_.hops).first(std::min<std::size_t>(class_.hop_count, EC_MAX_HOPS));
  }

  bool can_send(const ec_hop& hop) const { return (hop.families & (to_.address.is_v4() ? EC_IPV4 : EC_IPV6)) != 0; }

  Result<bool> answers(const ec_hop& hop) const {
    if (hop.path == EC_PATH_LOCAL) return true;
    auto map = open_gateways_map();
    if (!map) return map.error();
    auto gateway = map->find(hop.address);
    if (!gateway) return gateway.error();
    return *gateway && (*gateway)->unanswered < EC_PROBES_UNANSWERED;
  }

  /// spread_key() of bpf/gateways.h. No value: not known of this flow.
  std::optional<std::uint32_t> spread_key() const {
    const ec_ip src = to_ec(source_);
    const ec_ip dst = to_ec(to_.address);
    const std::uint32_t key = ec_hash_ip(0, &src);
    if ((class_.flags & EC_SPREAD_FLOWS) == 0) return key;
    if (!to_.protocol) return std::nullopt;
    const bool is_icmp = *to_.protocol == IPPROTO_ICMP || *to_.protocol == IPPROTO_ICMPV6;
    if ((to_.has_ports() && !to_.port) || ((to_.has_ports() || is_icmp) && !source_port_)) return std::nullopt;
    const std::uint32_t sport = to_.has_ports() || is_icmp ? htons(*source_port_) : 0U;
    const std::uint32_t dport = htons(to_.port.value_or(0));
    return ec_mix(ec_mix(ec_hash_ip(key, &dst), sport << 16U | dport), *to_.protocol);
  }

  Status ask_gateway() {
    std::vector<std::pair<const ec_hop*, bool>> candidates;
    for (const ec_hop& hop : hops()) {
      if (!can_send(hop)) continue;
      auto answering = answers(hop);
      if (!answering) return answering.error();
      candidates.emplace_back(&hop, *answering);
      if (!*answering) step("gateway " + from_ec(hop.address).str() + " does not answer");
    }
    std::erase_if(candidates, [](const auto& candidate) { return !candidate.second; });
    if (candidates.empty()) {
      end(EC_DROP_GATEWAY_UNREACHABLE, "dropped: no gateway of the class answers");
      return Ok{};
    }
    const auto key = spread_key();
    if (!key && candidates.size() > 1) {
      for (const auto& [hop, answering] : candidates) e_.gateways.push_back(from_ec(hop->address));
      step("each flow chooses one of " + std::to_string(candidates.size()) +
           " gateways (\"spread\": \"flow\"): name protocol, port and --from-port to see which");
      return Ok{};
    }
    const auto* best = candidates[0].first;
    for (const auto& [hop, answering] : candidates)
      if (key && ec_weight(*key, hop->seed) >= ec_weight(*key, best->seed)) best = hop;
    return leave_by(*best, candidates.size());
  }

  Status leave_by(const ec_hop& hop, std::size_t of) {
    e_.gateway = from_ec(hop.address);
    e_.mark = class_.mark;
    const std::string how = of == 1 ? ""
                                    : std::string(", chosen of ") + std::to_string(of) + " by the hash of the " +
                                          ((class_.flags & EC_SPREAD_FLOWS) != 0 ? "flow" : "pod");
    const std::string name = e_.gateway->str();
    if (hop.path == EC_PATH_NEXTHOP) {
      end(EC_STEERED_NEXTHOP,
          "leaves by next hop " + name + how + ", with the pod's address and mark " + hex(*e_.mark));
      return Ok{};
    }
    step(hop.path == EC_PATH_LOCAL ? "gateway " + name + " is this node" + how
                                   : "goes through the tunnel to gateway " + name + how);
    if (hop.path == EC_PATH_LOCAL)
      leave_here();
    else
      leave_there();
    return Ok{};
  }

  void leave_here() {
    const ec_slots& slots = to_.address.is_v4() ? class_.slots4 : class_.slots6;
    const ec_slot* best = nullptr;
    const ec_ip src = to_ec(source_);
    const std::uint32_t key = ec_hash_ip(0, &src);
    const auto present = std::span(slots.slot).first(std::min<std::size_t>(slots.count, EC_MAX_SLOTS));
    for (const ec_slot& slot : present)
      if (best == nullptr || ec_weight(key, slot.seed) >= ec_weight(key, best->seed)) best = &slot;
    if (best != nullptr) {
      e_.egress_ip = from_ec(best->ip);
      e_.mark = best->id;
    }
    end(EC_STEERED_LOCAL, egress_ip_text(present.size(), "mark " + hex(*e_.mark) + " in the gateway's namespace"));
  }

  /// The other node's tables are not here; its choice is made the same way everywhere.
  void leave_there() {
    const Gateway* gateway = nullptr;
    if (config_ != nullptr)
      for (const Gateway& candidate : config_->gateways)
        if (candidate.address == *e_.gateway) gateway = &candidate;
    std::size_t count = 0;
    std::uint32_t highest = 0;
    const ec_ip src = to_ec(source_);
    const std::uint32_t key = ec_hash_ip(0, &src);
    if (gateway != nullptr)
      for (const Ip& ip : gateway->egress_ips) {
        if (ip.is_v4() != to_.address.is_v4()) continue;
        const std::uint32_t weight = ec_weight(key, seed_of(ip));
        if (count++ == 0 || weight >= highest) e_.egress_ip = ip;
        highest = std::max(highest, weight);
      }
    end(EC_STEERED_TUNNEL, egress_ip_text(count, "VNI " + std::to_string(class_.vni)));
  }

  std::string egress_ip_text(std::size_t of, const std::string& carried) const {
    if (!e_.egress_ip) return "with an egress IP that this node's configuration does not name (" + carried + ")";
    return "leaves with egress IP " + e_.egress_ip->str() + " (" + carried + ")" +
           (of > 1 ? ", the pod's own of " + std::to_string(of) + "; another one when it has few ports left" : "");
  }

  const Attachment& pod_;
  const Ip& source_;
  const Target& to_;
  std::optional<std::uint16_t> source_port_;
  const ClassConfig* config_;
  ec_node node_{};
  __u32 class_id_ = 0;
  ec_class class_{};
  Explanation e_;
};

}  // namespace

Result<Explanation> explain(const Attachment& pod, const Ip& source, const Target& to,
                            std::optional<std::uint16_t> source_port, const Config& applied) {
  return Explainer(pod, source, to, source_port, applied).explain();
}

}  // namespace egressclass
