// SPDX-License-Identifier: Apache-2.0
// The configuration file, and what nodes of several kinds make of it. What a good configuration has to be is checked
// anew here, by plainer means than the program's.
#include <netinet/in.h>

#include <bit>
#include <map>
#include <set>
#include <vector>

#include "../bpf/egressclass.h"
#include "core/config.h"
#include "core/plan.h"
#include "fuzz.h"

namespace egressclass::fuzz {
namespace {

bool is_inside(const Ip& ip, const Prefix& prefix) {
  for (unsigned bit = 0; bit < prefix.length; ++bit)
    if (((ip.bytes[bit / 8] ^ prefix.ip.bytes[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
  return ip.is_v4() == prefix.ip.is_v4();
}

bool is_inside(const Ip& ip, const std::vector<Prefix>& prefixes) {
  return std::ranges::any_of(prefixes, [&](const Prefix& prefix) { return is_inside(ip, prefix); });
}

void check_prefixes(const std::vector<Prefix>& prefixes) {
  require(std::set<Prefix>(prefixes.begin(), prefixes.end()).size() == prefixes.size(), "no prefix is listed twice");
  for (const Prefix& prefix : prefixes) {
    require(prefix.length <= 128 && (!prefix.ip.is_v4() || prefix.length >= 96), "a length is one", prefix.str());
    for (unsigned bit = prefix.length; bit < 128; ++bit)
      require((prefix.ip.bytes[bit / 8] >> (7 - bit % 8) & 1) == 0, "no host bits are set", prefix.str());
  }
}

void check_patterns(const std::vector<std::string>& patterns) {
  for (const std::string& pattern : patterns) {
    require(!pattern.empty() && pattern.size() <= 253, "a pattern is of its length", pattern);
    require_message(pattern);
  }
}

/// Not for this host alone, nor for a link alone, nor for many.
void check_machine(const Ip& ip) {
  const auto& b = ip.bytes;
  const Ip unspecified{};
  Ip loopback{};
  loopback.bytes[15] = 1;
  if (ip.is_v4())
    require(b[12] != 0 && b[12] != 127 && b[12] < 224 && (b[12] != 169 || b[13] != 254), "a machine can have it",
            ip.str());
  else
    require(ip != unspecified && ip != loopback && b[0] != 0xff && (b[0] != 0xfe || b[1] < 0x80 || b[1] > 0xbf),
            "a machine can have it", ip.str());
}

void check_ports(const std::vector<PortRule>& rules) {
  const std::set<int> with_ports = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP};
  const std::set<int> without_ports = {IPPROTO_ICMP, IPPROTO_GRE, IPPROTO_ESP, IPPROTO_AH};
  for (const PortRule& rule : rules) {
    const bool all = rule.first == 0 && rule.last == 65535;
    require(with_ports.contains(rule.protocol) || (all && without_ports.contains(rule.protocol)),
            "a protocol with ports has them, and no other", rule.str());
    require(all || (rule.first != 0 && rule.first <= rule.last), "ports are a range", rule.str());
    std::string why;
    require(PortRule::parse(rule.str(), &why) == rule, "a rule is read as it was written", rule.str());
  }
  for (std::size_t i = 1; i < rules.size(); ++i)
    require(rules[i - 1] < rules[i], "rules are sorted, and none is there twice", rules[i].str());
}

void check_gateways(const ClassConfig& c, const Config& config) {
  require(!c.gateways.empty() && c.gateways.size() <= 16, "a class has gateways", c.name);
  std::set<Ip> addresses;
  std::set<Ip> egress_ips;
  bool any_of_ours = false;
  for (const Gateway& gateway : c.gateways) {
    require(addresses.insert(gateway.address).second, "a gateway is listed once", gateway.address.str());
    check_machine(gateway.address);
    require(gateway.interface.size() <= 15, "the name of an interface is of its length", gateway.interface);
    if (gateway.via == Via::kNextHop) {
      require(gateway.egress_ips.empty(), "a next hop has no egress IPs", gateway.address.str());
      continue;
    }
    any_of_ours = true;
    require(is_inside(gateway.address, config.nodes), "a gateway is a node", gateway.address.str());
    int v4 = 0;
    int v6 = 0;
    for (const Ip& ip : gateway.egress_ips) {
      ++(ip.is_v4() ? v4 : v6);
      check_machine(ip);
      require(egress_ips.insert(ip).second, "an egress IP is on one gateway", ip.str());
      require(!is_inside(ip, config.cluster_cidrs), "an egress IP is no pod's", ip.str());
      require(!is_inside(ip, config.nodes), "an egress IP is no node's", ip.str());
    }
    require(v4 <= 8 && v6 <= 8, "a gateway has a place for each of its egress IPs", gateway.address.str());
  }
  require(!any_of_ours || !egress_ips.empty(), "a class has egress IPs", c.name);
}

void check_class(const ClassConfig& c, const Config& config) {
  const std::uint32_t mask = config.mark_mask;
  require(!c.name.empty() && c.name.size() <= 63, "a class has a name", c.name);
  require_message(c.name);
  require(c.vni >= 1 && c.vni <= 0xfffffe, "a VNI is in its range", c.name);
  require(!c.destinations.empty(), "a class has destinations", c.name);
  std::vector<Prefix> both = c.except;
  for (const Destination& destination : c.destinations) {
    both.push_back(destination.prefix);
    check_ports(destination.ports);
  }
  check_prefixes(both);  // so none is in and out
  check_patterns(c.entitled);
  for (const SelectRule& rule : c.select) {
    require(!rule.namespaces.empty() || !rule.pods.empty(), "no rule selects every pod by mistake", c.name);
    check_patterns(rule.namespaces);
    check_patterns(rule.pods);
  }
  check_gateways(c, config);
  if (c.mark) require(*c.mark != 0 && (*c.mark & ~mask) == 0 && *c.mark != mask, "a mark is in the mask", c.name);
}

/// Two machines never have one address, and an address never two meanings.
void check_machines(const Config& config) {
  std::map<Ip, Via> machines;
  std::map<Ip, Ip> owners;
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways) {
      require(machines.try_emplace(gateway.address, gateway.via).first->second == gateway.via,
              "a machine is a gateway of ours or a next hop", gateway.address.str());
      for (const Ip& ip : gateway.egress_ips)
        require(owners.try_emplace(ip, gateway.address).first->second == gateway.address,
                "an egress IP is on one machine", ip.str());
    }
  for (const auto& [ip, gateway] : owners)
    require(!machines.contains(ip), "an egress IP is no gateway's address", ip.str());
}

using PlainJson = nlohmann::json;

std::vector<Ip> ips_in(const PlainJson& object) {
  std::vector<Ip> ips;
  for (const PlainJson& text : object.value("egressIPs", PlainJson::array()))
    ips.push_back(Ip::parse(text.get<std::string>()).value_or(Ip{}));
  return ips;
}

std::set<std::string> texts_in(const PlainJson& list) {
  std::set<std::string> texts;
  for (const PlainJson& text : list)
    if (text != "any") texts.insert(text.get<std::string>());
  return texts;
}

/// The egress IPs that gateways[index] of a class is to have: those of the class whose turn it is.
std::set<Ip> dealt(const PlainJson& json, std::size_t index) {
  const PlainJson& gateways = json.at("gateways");
  const auto takes = [](const PlainJson& gateway) {
    return !gateway.contains("via") && !gateway.contains("egressIPs");
  };
  if (!takes(gateways[index])) {
    const std::vector<Ip> own = ips_in(gateways[index]);
    return {own.begin(), own.end()};
  }
  const auto takers = static_cast<std::size_t>(std::count_if(gateways.begin(), gateways.end(), takes));
  const auto turn = static_cast<std::size_t>(
      std::count_if(gateways.begin(), gateways.begin() + static_cast<std::ptrdiff_t>(index), takes));
  std::set<Ip> ips;
  for (const bool v4 : {true, false}) {
    std::size_t at = 0;
    for (const Ip& ip : ips_in(json))
      if (ip.is_v4() == v4 && at++ % takers == turn) ips.insert(ip);
  }
  return ips;
}

/// What a class says and what was made of it are the same, with the library's own parser: nothing is lost or invented.
void check_meaning(const ClassConfig& c, const PlainJson& json) {
  require(json.value("name", "") == c.name, "a class has its name", c.name);
  require((json.value("otherwise", "") == "drop") == c.otherwise_drop, "otherwise", c.name);
  require((json.value("otherFamily", "") == "bypass") == c.other_family_bypass, "otherFamily", c.name);
  require((json.value("spread", "") == "flow") == c.spread_flows, "spread", c.name);
  require((json.value("onChange", "") == "cut") == !c.keep_flows, "onChange", c.name);
  require(json.value("force", false) == c.force, "force", c.name);
  require(json.value("except", PlainJson::array()).size() == c.except.size(), "except", c.name);
  const PlainJson& destinations = json.at("destinations");
  require(destinations.size() == c.destinations.size(), "destinations", c.name);
  for (std::size_t i = 0; i < destinations.size(); ++i) {
    const PlainJson& entry = destinations[i];
    const bool own = entry.is_object() && entry.contains("ports");
    const auto said = texts_in((own ? entry : json).value("ports", PlainJson::array()));
    const auto& rules = c.destinations[i].ports;
    require(rules.size() == said.size(), "each rule is there, and a bad one never widens to all", c.name);
    for (const PortRule& rule : rules) {
      const std::string text = rule.str();
      const bool lone = rule.first == rule.last && said.contains(text + '-' + std::to_string(rule.last));
      require(said.contains(text) || lone, "a rule is one of those that were given", text);
    }
  }
  const PlainJson& gateways = json.at("gateways");
  require(gateways.size() == c.gateways.size(), "gateways", c.name);
  for (std::size_t i = 0; i < gateways.size(); ++i) {
    const Gateway& gateway = c.gateways[i];
    require((gateways[i].value("via", "") == "nexthop") == (gateway.via == Via::kNextHop), "via", c.name);
    require(gateways[i].value("interface", "") == gateway.interface, "interface", c.name);
    require(dealt(json, i) == std::set<Ip>(gateway.egress_ips.begin(), gateway.egress_ips.end()),
            "egress IPs are dealt out in turn", gateway.address.str());
  }
}

void check_meaning(const Config& config, std::string_view input) {
  const auto json = PlainJson::parse(input);
  const PlainJson& classes = json.at("classes");
  require(classes.size() == config.classes.size(), "every class is there");
  for (std::size_t i = 0; i < classes.size(); ++i) check_meaning(config.classes[i], classes[i]);
}

void check_config(const Config& config) {
  require(std::popcount(config.mark_mask) >= 4, "the mask is wide enough");
  require(config.tunnel_port != 0, "the tunnel has a port");
  check_prefixes(config.nodes);
  check_prefixes(config.cluster_cidrs);
  std::set<std::string> names;
  std::set<std::uint32_t> vnis;
  std::set<std::uint32_t> marks;
  int defaults = 0;
  for (const ClassConfig& c : config.classes) {
    check_class(c, config);
    require(names.insert(c.name).second, "names are unique", c.name);
    require(vnis.insert(c.vni).second, "VNIs are unique", c.name);
    require(!c.mark || marks.insert(*c.mark).second, "marks are unique", c.name);
    defaults += c.is_default ? 1 : 0;
    require(config.find(c.name) == &c, "a class is found by its name", c.name);
  }
  require(defaults <= 1, "at most one class is the default");
  check_machines(config);
}

void check_problems(const std::vector<ConfigProblem>& problems) {
  require(!problems.empty(), "a refusal says why");
  for (const ConfigProblem& problem : problems) {
    require(!problem.reason.empty(), "a problem has a reason", problem.path);
    require_message(problem.reason);
    require_message(problem.value);
    require_message(problem.path);
  }
}

bool has_address(const NodeFacts& facts, const Ip& ip) {
  return std::ranges::find(facts.addresses, ip, &NodeFacts::Address::ip) != facts.addresses.end();
}

/// The gateways as this node reaches them, and its own egress IPs.
void check_role(const Plan& plan, const PlannedClass& planned, const ClassConfig& c, const NodeFacts& facts) {
  require(planned.hops.size() == c.gateways.size(), "a plan has every gateway", c.name);
  std::vector<Ip> here;
  for (std::size_t i = 0; i < c.gateways.size(); ++i) {
    const Gateway& gateway = c.gateways[i];
    const PlannedHop& hop = planned.hops[i];
    const std::string shown = hop.address.str();
    require(hop.address == gateway.address, "gateways keep their order", shown);
    if (gateway.via == Via::kNextHop) {
      require(hop.path == Path::kNextHop && hop.ifindex != 0, "a next hop is behind an interface", shown);
      require(hop.v4 == hop.address.is_v4() && hop.v6 == !hop.v4, "a next hop has its own family", shown);
      require(plan.never_steered.contains(Prefix::host(hop.address)), "traffic to a next hop is not steered", shown);
      continue;
    }
    const bool local = has_address(facts, hop.address);
    require(hop.path == (local ? Path::kLocal : Path::kTunnel), "a gateway is here or behind the tunnel", shown);
    require(local || (hop.address.is_v4() ? plan.underlay4 : plan.underlay6), "a tunnel has two ends", shown);
    require(hop.v4 == std::ranges::any_of(gateway.egress_ips, &Ip::is_v4), "a gateway's families (4)", shown);
    require(hop.v6 == !std::ranges::all_of(gateway.egress_ips, &Ip::is_v4), "a gateway's families (6)", shown);
    if (local) here.insert(here.end(), gateway.egress_ips.begin(), gateway.egress_ips.end());
    for (const Ip& ip : gateway.egress_ips)
      require(plan.never_steered.contains(Prefix::host(ip)), "traffic to an egress IP is not steered", ip.str());
  }
  std::vector<Ip> planned_here;
  for (const PlannedSlot& slot : planned.slots) planned_here.push_back(slot.ip);
  require(planned_here == here, "a gateway has its egress IPs", c.name);
}

/// nft knows an egress IP by its id, and a class by that and a mark: neither means two things.
void check_marks(const Plan& plan, const Config& config) {
  const std::uint32_t mask = config.mark_mask;
  const std::uint32_t pending = std::bit_floor(mask);
  std::map<std::uint32_t, std::string> owners;
  std::set<std::uint32_t> marks;
  for (const PlannedClass& c : plan.classes) {
    require(c.id != 0 && c.mark != 0 && (c.mark & ~mask) == 0 && (c.mark & pending) == 0, "a class has a mark", c.name);
    require(owners.emplace(c.id, c.name).second && marks.insert(c.mark).second, "marks are unique on a node", c.name);
  }
  std::set<std::pair<std::uint32_t, bool>> translated;
  for (const PlannedClass& c : plan.classes)
    for (const PlannedSlot& slot : c.slots) {
      const std::string shown = slot.ip.str();
      require(slot.id != 0 && slot.id <= EC_MARK_ID, "an egress IP has an id", shown);
      require(owners.try_emplace(slot.id, c.name).first->second == c.name, "an id is of one class", shown);
      require(translated.emplace(slot.id, slot.ip.is_v4()).second, "an id is of one egress IP of a family", shown);
      require(plan.applied.slots.at({c.name, slot.ip}) == slot.id, "what is applied has the ids", shown);
    }
}

/// A node that had nothing: every egress IP that is the first of its family has its class's own mark.
void check_first_slots(const Plan& plan) {
  for (const PlannedClass& c : plan.classes)
    for (const bool v4 : {true, false}) {
      const auto first = std::ranges::find_if(c.slots, [v4](const auto& slot) { return slot.ip.is_v4() == v4; });
      require(first == c.slots.end() || first->id == c.id, "the first egress IP has the class's mark", c.name);
    }
}

/// Without one class, and without one egress IP of another: what stays keeps its marks.
void check_smaller(Config config, const NodeFacts& facts) {
  if (config.classes.size() > 1) config.classes.erase(config.classes.begin());
  for (Gateway& gateway : config.classes.back().gateways)
    if (gateway.egress_ips.size() > 1) gateway.egress_ips.erase(gateway.egress_ips.begin());
  std::vector<ConfigProblem> problems;
  const auto plan = make_plan(config, facts, &problems);
  require(plan.has_value(), "less is possible where more was", format_problems("", problems));
  check_marks(*plan, config);
  for (const auto& [name, id] : plan->applied.ids) require(facts.previous->ids.at(name) == id, "an id stays", name);
  for (const auto& [slot, id] : plan->applied.slots)
    require(facts.previous->slots.at(slot) == id, "the id of an egress IP stays", slot.second.str());
}

/// The ids that running pods carry stay with their classes, so that a second apply changes nothing.
void check_plan(const Config& config, NodeFacts facts) {
  std::vector<ConfigProblem> problems;
  const auto plan = make_plan(config, facts, &problems);
  if (!plan) return check_problems(problems);
  require(problems.empty() && plan->classes.size() == config.classes.size(), "a plan has every class");
  check_marks(*plan, config);
  check_first_slots(*plan);
  for (std::size_t i = 0; i < plan->classes.size(); ++i) {
    check_role(*plan, plan->classes[i], config.classes[i], facts);
    facts.attached[plan->classes[i].id] = plan->classes[i].name;
  }
  for (const auto& underlay : {plan->underlay4, plan->underlay6})
    require(!underlay || has_address(facts, underlay->ip), "a node's underlay is its own");
  const auto reread = Applied::from_json(plan->applied.to_json());
  require(reread && reread->to_json() == plan->applied.to_json(), "what is applied is read as it was written");
  require(reread->slots == plan->applied.slots, "the ids of egress IPs are read as they were written");
  facts.previous = *reread;
  problems.clear();
  const auto again = make_plan(config, facts, &problems);
  require(again && again->applied.ids == plan->applied.ids && again->applied.slots == plan->applied.slots, "ids stay",
          format_problems("", problems));
  if (!config.classes.empty()) check_smaller(config, facts);
}

/// A machine on the link of a next hop.
Ip neighbour_of(Ip ip) {
  ip.bytes[15] ^= 1U;
  return ip;
}

void check_plans(const Config& config) {
  NodeFacts facts;
  check_plan(config, facts);  // no node of this fleet
  int ifindex = 2;
  for (const Prefix& node : config.nodes) facts.addresses.push_back({ifindex++, node.ip, 120});
  check_plan(config, facts);  // every node at once, so nearly every class's gateway
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways) {
      if (!gateway.interface.empty()) facts.interfaces[gateway.interface] = ifindex;
      if (gateway.via == Via::kNextHop)
        facts.addresses.push_back({ifindex++, neighbour_of(gateway.address), 120});
      else
        facts.addresses.push_back({ifindex++, gateway.address, 0});
    }
  check_plan(config, facts);  // every gateway, and next to every next hop
  NodeFacts worker = facts;
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways)
      if (gateway.via == Via::kGateway)
        std::erase_if(worker.addresses, [&](const auto& address) { return address.ip == gateway.address; });
  check_plan(config, worker);  // none of the gateways
  std::optional<Ip> of_pod;
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways)
      for (const Ip& ip : gateway.egress_ips) {
        of_pod = ip;
        facts.addresses.push_back({ifindex++, ip, 128});
        facts.held.insert(ip);
      }
  check_plan(config, facts);  // with the egress IPs in place
  if (of_pod) facts.pods[*of_pod] = "shop/web";
  facts.attached[1] = "gone";
  check_plan(config, facts);  // with pods of a class that is no more
}

}  // namespace
}  // namespace egressclass::fuzz

FUZZ_TARGET(input) {
  using namespace egressclass;
  using namespace egressclass::fuzz;
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(std::string(input), &problems);
  if (!config) return check_problems(problems);
  require(problems.empty(), "a good configuration has no problems", format_problems("", problems));
  check_config(*config);
  check_meaning(*config, input);
  check_plans(*config);
}
