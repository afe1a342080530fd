// SPDX-License-Identifier: Apache-2.0
// The prefixes of each class in the map `rules`. A class whose prefixes change gets a new ruleset, complete before
// its entry in `classes` points there: a packet meets the old prefixes or the new, never a mixture.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/plan.h"
#include "datapath/port_sets.h"
#include "util/result.h"

namespace egressclass {

class RulesetChange {
 public:
  /// What is to be written for `plan`. Reads only. An error when the maps have not enough room for it beside what is
  /// there.
  static Result<RulesetChange> prepare(const Plan& plan);

  /// Writes what is not there yet, and what is never steered.
  Status write();
  /// Then, when no class refers to the others any more: deletes all rulesets of classes but numbers().
  Status remove_unused() const;
  /// All that is in the map then.
  std::vector<std::pair<ec_rule_key, ec_rule>> entries() const;
  /// The ruleset of each class by name.
  const std::map<std::string, std::uint32_t>& numbers() const { return numbers_; }

 private:
  struct Rule {
    __u32 verdict = 0;   // enum ec_verdict
    __u32 port_set = 0;  // EC_STEER
    bool operator==(const Rule&) const = default;
  };
  using Rules = BpfMap<ec_rule_key, ec_rule>;
  using Ruleset = std::map<Prefix, Rule>;

  RulesetChange(Rules rules, PortSets ports) : rules_(std::move(rules)), ports_(std::move(ports)) {}
  std::set<std::uint32_t> used_numbers() const;
  static Ruleset listing(const std::set<Prefix>& prefixes);
  static ec_rule_key key_of(std::uint32_t number, const Prefix& prefix);
  Status read();
  Result<Ruleset> wanted_by(const PlannedClass& c);
  Status choose_numbers(const Plan& plan);
  Status set_all(std::uint32_t number, const Ruleset& wanted) const;
  Status change_in_place(std::uint32_t number, const Ruleset& wanted) const;

  Rules rules_;
  PortSets ports_;
  std::map<std::uint32_t, Ruleset> present_;
  std::map<std::uint32_t, Ruleset> coming_;
  std::map<std::uint32_t, Ruleset> fixed_;  // EC_RULESET_NEVER, EC_RULESET_SENDERS
  std::map<std::string, std::uint32_t> numbers_;
};

}  // namespace egressclass
