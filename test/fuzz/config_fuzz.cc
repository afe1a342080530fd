// SPDX-License-Identifier: Apache-2.0
// The configuration file, and what nodes of several kinds make of it. What a good configuration has to be is checked
// anew here, by plainer means than the program's.
#include <bit>
#include <set>
#include <vector>

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

void check_class(const ClassConfig& c, const Config& config) {
  const std::uint32_t mask = config.mark_mask;
  require(!c.name.empty() && c.name.size() <= 63, "a class has a name", c.name);
  require_message(c.name);
  require(c.vni >= 1 && c.vni <= 0xfffffe, "a VNI is in its range", c.name);
  require(!c.destinations.empty(), "a class has destinations", c.name);
  check_prefixes(c.destinations);
  check_prefixes(c.except);
  for (const Prefix& prefix : c.except)
    require(std::ranges::find(c.destinations, prefix) == c.destinations.end(), "no prefix is in and out", prefix.str());
  check_patterns(c.entitled);
  for (const SelectRule& rule : c.select) {
    require(!rule.namespaces.empty() || !rule.pods.empty(), "no rule selects every pod by mistake", c.name);
    check_patterns(rule.namespaces);
    check_patterns(rule.pods);
  }
  require(c.gateway.is_v4() && is_inside(c.gateway, config.nodes), "a gateway is a node", c.gateway.str());
  require(c.egress_ip.is_v4() && c.egress_ip != Ip::from_v4(0), "an egress IP is an IPv4 address", c.egress_ip.str());
  require(!is_inside(c.egress_ip, config.cluster_cidrs), "an egress IP is no pod's", c.egress_ip.str());
  require(!is_inside(c.egress_ip, config.nodes), "an egress IP is no node's", c.egress_ip.str());
  require(c.interface.size() <= 15, "the name of an interface is of its length", c.interface);
  if (c.mark) require(*c.mark != 0 && (*c.mark & ~mask) == 0 && *c.mark != mask, "a mark is in the mask", c.name);
}

void check_config(const Config& config) {
  require(std::popcount(config.mark_mask) >= 3, "the mask is wide enough");
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

/// The ids that running pods carry stay with their classes, so that a second apply changes nothing.
void check_plan(const Config& config, NodeFacts facts) {
  std::vector<ConfigProblem> problems;
  const auto plan = make_plan(config, facts, &problems);
  if (!plan) return check_problems(problems);
  require(problems.empty() && plan->classes.size() == config.classes.size(), "a plan has every class");
  std::set<std::uint32_t> marks;
  for (const PlannedClass& c : plan->classes) {
    require(c.id != 0 && c.mark != 0 && (c.mark & ~config.mark_mask) == 0, "a class has a mark", c.name);
    require(marks.insert(c.mark).second, "marks are unique on a node", c.name);
    require(plan->never_steered.contains(Prefix::host(c.egress_ip)), "traffic to an egress IP is not steered", c.name);
    facts.attached[c.id] = c.name;
  }
  const auto reread = Applied::from_json(plan->applied.to_json());
  require(reread && reread->to_json() == plan->applied.to_json(), "what is applied is read as it was written");
  facts.previous = *reread;
  problems.clear();
  const auto again = make_plan(config, facts, &problems);
  require(again && again->applied.ids == plan->applied.ids, "ids stay", format_problems("", problems));
}

void check_plans(const Config& config) {
  NodeFacts facts;
  check_plan(config, facts);  // no node of this fleet
  int ifindex = 2;
  for (const Prefix& node : config.nodes) facts.addresses.push_back({ifindex++, node.ip, 120});
  check_plan(config, facts);  // every node at once, so every class's gateway
  for (const ClassConfig& c : config.classes) {
    if (!c.interface.empty()) facts.interfaces[c.interface] = ifindex;
    facts.addresses.push_back({ifindex++, c.gateway, 0});
    facts.addresses.push_back({ifindex++, c.egress_ip, 128});
    facts.placed.insert(c.egress_ip);
  }
  check_plan(config, facts);  // with the egress IPs in place
  if (!config.classes.empty()) facts.pods[config.classes[0].egress_ip] = "shop/web";
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
  check_plans(*config);
}
