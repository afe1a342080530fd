// SPDX-License-Identifier: Apache-2.0
#include "datapath/rulesets.h"

#include <array>

#include "datapath/maps.h"

namespace egressclass {

namespace {

/// 0.0.0.0/0 and ::/0.
const std::array<Prefix, 2> kEverything = {Prefix{*Ip::parse("0.0.0.0"), 96}, Prefix{*Ip::parse("::"), 0}};

}  // namespace

ec_rule_key RulesetChange::key_of(std::uint32_t number, const Prefix& prefix) {
  return ec_rule_key{
      .prefixlen = 32 + prefix.length, .tree = EC_TREE(number, prefix.ip.is_v4() ? 1U : 0U), .ip = to_ec(prefix.ip)};
}

/// A ruleset with a fixed number.
RulesetChange::Ruleset RulesetChange::listing(const std::set<Prefix>& prefixes) {
  Ruleset listed;
  for (const Prefix& prefix : prefixes) listed[prefix] = {EC_BYPASS, 0};
  for (const Prefix& everything : kEverything) listed.try_emplace(everything, Rule{EC_OTHERWISE, 0});
  return listed;
}

Status RulesetChange::read() {
  auto entries = rules_.entries();
  if (!entries) return entries.error();
  for (const auto& [key, rule] : *entries)
    present_[key.tree >> 1U][Prefix{from_ec(key.ip), key.prefixlen - 32}] = Rule{rule.verdict, rule.port_set};
  return Ok{};
}

Result<RulesetChange::Ruleset> RulesetChange::wanted_by(const PlannedClass& c) {
  Ruleset wanted;
  for (const Destination& destination : c.destinations) {
    auto port_set = ports_.number_of(destination.ports);
    if (!port_set) return port_set.error();
    wanted[destination.prefix] = {EC_STEER, *port_set};
  }
  for (const Prefix& prefix : c.except) wanted[prefix] = {EC_BYPASS};
  for (const Prefix& everything : kEverything) wanted.try_emplace(everything, Rule{EC_OTHERWISE, 0});
  return wanted;
}

/// The ruleset that a class has now is kept if its rules are still the wanted ones.
Status RulesetChange::choose_numbers(const Plan& plan) {
  auto map = open_classes_map();
  if (!map) return map.error();
  auto classes = map->entries();
  if (!classes) return classes.error();
  std::map<std::uint32_t, std::pair<std::uint32_t, std::uint32_t>> has;  // class id -> its VNI, its ruleset
  for (const auto& [id, entry] : *classes) has[id] = {entry.vni, entry.ruleset};
  std::uint32_t next = EC_RULESET_FIRST;
  for (const PlannedClass& c : plan.classes) {
    auto wanted = wanted_by(c);
    if (!wanted) return wanted.error();
    if (const auto entry = has.find(c.id); entry != has.end() && entry->second.first == c.vni)
      if (const auto old = present_.find(entry->second.second); old != present_.end() && old->second == *wanted) {
        numbers_[c.name] = old->first;
        continue;
      }
    while (present_.contains(next) || coming_.contains(next)) ++next;
    numbers_[c.name] = next;
    coming_[next] = std::move(*wanted);
  }
  return Ok{};
}

Result<RulesetChange> RulesetChange::prepare(const Plan& plan) {
  auto rules = open_rules_map();
  if (!rules) return rules.error();
  auto ports = PortSets::load();
  if (!ports) return ports.error();
  RulesetChange change(std::move(*rules), std::move(*ports));
  change.fixed_ = {{EC_RULESET_NEVER, listing(plan.never_steered)}, {EC_RULESET_SENDERS, listing(plan.senders)}};
  if (auto read = change.read(); !read) return read.error();
  if (auto chosen = change.choose_numbers(plan); !chosen) return chosen.error();

  std::size_t total = 0;
  for (const auto* rulesets : {&change.fixed_, &change.present_, &change.coming_})
    for (const auto& [number, ruleset] : *rulesets) total += ruleset.size();
  if (total > EC_MAX_RULES)
    return make_error("too many prefixes", "the map `rules` holds " + std::to_string(EC_MAX_RULES) +
                                               "; the old prefixes and the new ones are " + std::to_string(total));
  return change;
}

Status RulesetChange::set_all(std::uint32_t number, const Ruleset& wanted) const {
  for (const auto& [prefix, rule] : wanted)
    if (auto set = rules_.set(key_of(number, prefix), {rule.verdict, rule.port_set}); !set) return set;
  return Ok{};
}

/// For rulesets with fixed numbers: first what comes, then what goes.
Status RulesetChange::change_in_place(std::uint32_t number, const Ruleset& wanted) const {
  const Ruleset none;
  const auto found = present_.find(number);
  const Ruleset& present = found == present_.end() ? none : found->second;
  Ruleset coming;
  for (const auto& [prefix, rule] : wanted)
    if (const auto old = present.find(prefix); old == present.end() || old->second != rule) coming[prefix] = rule;
  if (auto set = set_all(number, coming); !set) return set;
  for (const auto& [prefix, rule] : present)
    if (!wanted.contains(prefix))
      if (auto erased = rules_.erase(key_of(number, prefix)); !erased) return erased;
  return Ok{};
}

Status RulesetChange::write() {
  if (auto written = ports_.write(); !written) return written;
  for (const auto& [number, wanted] : fixed_)
    if (auto done = change_in_place(number, wanted); !done) return done;
  for (const auto& [number, wanted] : coming_)
    if (auto written = set_all(number, wanted); !written) return written;
  return Ok{};
}

std::set<std::uint32_t> RulesetChange::used_numbers() const {
  std::set<std::uint32_t> used;
  for (const auto& [name, number] : numbers_) used.insert(number);
  return used;
}

Status RulesetChange::remove_unused() const {
  std::set<std::uint32_t> keep = used_numbers();
  keep.insert({EC_RULESET_NEVER, EC_RULESET_SENDERS});
  std::set<std::uint32_t> port_sets;
  for (const auto* rulesets : {&present_, &coming_})
    for (const auto& [number, ruleset] : *rulesets)
      for (const auto& [prefix, rule] : ruleset)
        if (keep.contains(number))
          port_sets.insert(rule.port_set);
        else if (auto erased = rules_.erase(key_of(number, prefix)); !erased)
          return erased;
  return ports_.remove_unused(port_sets);
}

std::vector<std::pair<ec_rule_key, ec_rule>> RulesetChange::entries() const {
  std::vector<std::pair<ec_rule_key, ec_rule>> entries;
  const std::set<std::uint32_t> used = used_numbers();
  for (const auto* rulesets : {&fixed_, &present_, &coming_})
    for (const auto& [number, ruleset] : *rulesets)
      if (rulesets == &fixed_ || used.contains(number))
        for (const auto& [prefix, rule] : ruleset)
          entries.push_back({key_of(number, prefix), {rule.verdict, rule.port_set}});
  return entries;
}

}  // namespace egressclass
