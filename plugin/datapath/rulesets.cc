// SPDX-License-Identifier: Apache-2.0
#include "datapath/rulesets.h"

#include <set>

#include "datapath/maps.h"
#include "datapath/port_sets.h"

namespace egressclass {
namespace {

using Rules = BpfMap<ec_rule_key, ec_rule>;

struct Rule {
  __u32 verdict = 0;   // enum ec_verdict
  __u32 port_set = 0;  // EC_STEER
  bool operator==(const Rule&) const = default;
};
using Ruleset = std::map<Prefix, Rule>;

ec_rule_key rule_key(std::uint32_t ruleset, const Prefix& prefix) {
  return ec_rule_key{
      .prefixlen = 32 + prefix.length, .tree = EC_TREE(ruleset, prefix.ip.is_v4() ? 1U : 0U), .ip = to_ec(prefix.ip)};
}

Result<std::map<std::uint32_t, Ruleset>> read_all_rulesets(const Rules& rules) {
  std::map<std::uint32_t, Ruleset> found;
  auto entries = rules.entries();
  if (!entries) return entries.error();
  for (const auto& [key, rule] : *entries)
    found[key.tree >> 1U][Prefix{from_ec(key.ip), key.prefixlen - 32}] = Rule{rule.verdict, rule.port_set};
  return found;
}

Result<Ruleset> wanted_ruleset(const PlannedClass& c, PortSets& ports) {
  Ruleset wanted;
  for (const Destination& destination : c.destinations) {
    auto port_set = ports.number_of(destination.ports);
    if (!port_set) return port_set.error();
    wanted[destination.prefix] = {EC_STEER, *port_set};
  }
  for (const Prefix& prefix : c.except) wanted[prefix] = {EC_BYPASS};
  return wanted;
}

Status write_ruleset(const Rules& rules, std::uint32_t id, const Ruleset& wanted) {
  for (const auto& [prefix, rule] : wanted)
    if (auto set = rules.set(rule_key(id, prefix), {rule.verdict, rule.port_set}); !set) return set;
  return Ok{};
}

/// These two have fixed numbers, so they change in place: first what comes, then what goes.
Status change_in_place(const Rules& rules, std::uint32_t id, const Ruleset& present, const std::set<Prefix>& prefixes) {
  Ruleset wanted;
  Ruleset coming;
  for (const Prefix& prefix : prefixes) wanted[prefix] = {EC_BYPASS};
  for (const auto& [prefix, rule] : wanted)
    if (!present.contains(prefix)) coming[prefix] = rule;
  if (auto written = write_ruleset(rules, id, coming); !written) return written;
  for (const auto& [prefix, rule] : present)
    if (!wanted.contains(prefix))
      if (auto erased = rules.erase(rule_key(id, prefix)); !erased) return erased;
  return Ok{};
}

}  // namespace

Result<std::map<std::string, std::uint32_t>> write_rulesets(const Plan& plan) {
  auto rules = open_rules_map();
  if (!rules) return rules.error();
  auto present = read_all_rulesets(*rules);
  if (!present) return present.error();
  auto ports = PortSets::load();
  if (!ports) return ports.error();

  // The ruleset that a class has now; kept if its rules are still the wanted ones.
  auto classes = open_classes_map();
  if (!classes) return classes.error();
  std::map<std::string, std::uint32_t> ids;
  std::map<std::uint32_t, Ruleset> new_ones;
  std::size_t total = plan.never_steered.size() + plan.senders.size();
  for (const auto& [id, ruleset] : *present) total += ruleset.size();
  std::uint32_t next = EC_RULESET_FIRST;
  for (const PlannedClass& c : plan.classes) {
    auto wanted = wanted_ruleset(c, *ports);
    if (!wanted) return wanted.error();
    auto entry = classes->find(c.id);
    if (!entry) return entry.error();
    if (*entry && (*entry)->vni == c.vni)
      if (const auto old = present->find((*entry)->ruleset); old != present->end() && old->second == *wanted) {
        ids[c.name] = old->first;
        continue;
      }
    while (present->contains(next) || new_ones.contains(next)) ++next;
    ids[c.name] = next;
    total += wanted->size();
    new_ones[next] = std::move(*wanted);
  }
  if (total > EC_MAX_RULES)
    return make_error("too many prefixes", "the map `rules` holds " + std::to_string(EC_MAX_RULES) +
                                               ", this change needs " + std::to_string(total) +
                                               " for the moment of the change; nothing was changed");

  if (auto done = change_in_place(*rules, EC_RULESET_NEVER, (*present)[EC_RULESET_NEVER], plan.never_steered); !done)
    return done.error();
  if (auto done = change_in_place(*rules, EC_RULESET_SENDERS, (*present)[EC_RULESET_SENDERS], plan.senders); !done)
    return done.error();
  for (const auto& [id, wanted] : new_ones)
    if (auto written = write_ruleset(*rules, id, wanted); !written) return written.error();
  return ids;
}

Status remove_unused_rulesets(const std::map<std::string, std::uint32_t>& used) {
  auto rules = open_rules_map();
  if (!rules) return rules.error();
  std::set<std::uint32_t> keep = {EC_RULESET_NEVER, EC_RULESET_SENDERS};
  for (const auto& [name, id] : used) keep.insert(id);
  std::set<std::uint32_t> port_sets;
  auto entries = rules->entries();
  if (!entries) return entries.error();
  for (const auto& [key, rule] : *entries) {
    if (keep.contains(key.tree >> 1U))
      port_sets.insert(rule.port_set);
    else if (auto erased = rules->erase(key); !erased)
      return erased;
  }
  auto ports = PortSets::load();
  if (!ports) return ports.error();
  return ports->remove_unused(port_sets);
}

}  // namespace egressclass
