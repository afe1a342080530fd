// SPDX-License-Identifier: Apache-2.0
#include "datapath/rulesets.h"

#include <set>

#include "datapath/maps.h"

namespace egressclass {
namespace {

using Rules = BpfMap<ec_rule_key, __u32>;
using Ruleset = std::map<Prefix, __u32>;  // prefix -> enum ec_verdict

ec_rule_key rule_key(std::uint32_t ruleset, const Prefix& prefix) {
  return ec_rule_key{
      .prefixlen = 32 + prefix.length, .tree = EC_TREE(ruleset, prefix.ip.is_v4() ? 1U : 0U), .ip = to_ec(prefix.ip)};
}

Result<std::map<std::uint32_t, Ruleset>> read_all_rulesets(const Rules& rules) {
  std::map<std::uint32_t, Ruleset> found;
  auto keys = rules.keys();
  if (!keys) return keys.error();
  for (const ec_rule_key& key : *keys) {
    auto verdict = rules.find(key);
    if (!verdict) return verdict.error();
    if (*verdict) found[key.tree >> 1U][Prefix{from_ec(key.ip), key.prefixlen - 32}] = **verdict;
  }
  return found;
}

Ruleset wanted_ruleset(const PlannedClass& c) {
  Ruleset wanted;
  for (const Prefix& prefix : c.destinations) wanted[prefix] = EC_STEER;
  for (const Prefix& prefix : c.except) wanted[prefix] = EC_BYPASS;
  return wanted;
}

Status write_ruleset(const Rules& rules, std::uint32_t id, const Ruleset& wanted) {
  for (const auto& [prefix, verdict] : wanted)
    if (auto set = rules.set(rule_key(id, prefix), verdict); !set) return set;
  return Ok{};
}

/// These two have fixed numbers, so they change in place: first what comes, then what goes.
Status change_in_place(const Rules& rules, std::uint32_t id, const Ruleset& present, const std::set<Prefix>& prefixes) {
  Ruleset wanted;
  for (const Prefix& prefix : prefixes) wanted[prefix] = EC_BYPASS;
  if (auto written = write_ruleset(rules, id, wanted); !written) return written;
  for (const auto& [prefix, verdict] : present)
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

  // The ruleset that a class has now; kept if its prefixes are still the wanted ones.
  auto classes = open_classes_map();
  if (!classes) return classes.error();
  std::map<std::string, std::uint32_t> ids;
  std::map<std::uint32_t, Ruleset> new_ones;
  std::size_t total = plan.never_steered.size() + plan.senders.size();
  for (const auto& [id, ruleset] : *present) total += ruleset.size();
  std::uint32_t next = EC_RULESET_FIRST;
  for (const PlannedClass& c : plan.classes) {
    const Ruleset wanted = wanted_ruleset(c);
    auto entry = classes->find(c.id);
    if (!entry) return entry.error();
    if (*entry && (*entry)->vni == c.vni)
      if (const auto old = present->find((*entry)->ruleset); old != present->end() && old->second == wanted) {
        ids[c.name] = old->first;
        continue;
      }
    while (present->contains(next) || new_ones.contains(next)) ++next;
    ids[c.name] = next;
    total += wanted.size();
    new_ones[next] = wanted;
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
  auto keys = rules->keys();
  if (!keys) return keys.error();
  for (const ec_rule_key& key : *keys)
    if (!keep.contains(key.tree >> 1U))
      if (auto erased = rules->erase(key); !erased) return erased;
  return Ok{};
}

}  // namespace egressclass
