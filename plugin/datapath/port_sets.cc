// SPDX-License-Identifier: Apache-2.0
#include "datapath/port_sets.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <string>

namespace egressclass {

Result<PortSets> PortSets::load() {
  auto map = open_ports_map();
  if (!map) return map.error();
  auto keys = map->keys();
  if (!keys) return keys.error();
  PortSets sets(std::move(*map));
  sets.entries_ = keys->size();
  std::map<std::uint32_t, Set> by_number;
  std::set<std::uint32_t> marked;
  for (const ec_port_key& key : *keys)
    if (key.prefixlen == EC_PORT_SET_BITS)
      marked.insert(key.port_set);
    else
      by_number[key.port_set].insert({key.proto, ntohs(key.port), key.prefixlen - EC_PORT_BITS});
  for (auto& [number, set] : by_number) {
    sets.taken_.insert(number);
    if (marked.contains(number)) sets.numbers_.try_emplace(std::move(set), number);  // else it was not written whole
  }
  return sets;
}

PortSets::Set PortSets::entries_of(const std::vector<PortRule>& rules) {
  Set set;
  for (const PortRule& rule : rules) {
    if (rule.protocol == IPPROTO_ICMP) set.insert({IPPROTO_ICMPV6, 0, 0});
    for (const auto& [port, length] : port_prefixes(rule.first, rule.last)) set.insert({rule.protocol, port, length});
  }
  return set;
}

ec_port_key PortSets::key_of(std::uint32_t number, const Entry& entry) {
  return {
      .prefixlen = EC_PORT_BITS + entry.length, .port_set = number, .proto = entry.protocol, .port = htons(entry.port)};
}

Result<std::uint32_t> PortSets::number_of(const std::vector<PortRule>& rules) {
  if (rules.empty()) return std::uint32_t{0};
  Set set = entries_of(rules);
  if (const auto found = numbers_.find(set); found != numbers_.end()) return found->second;
  if (entries_ + set.size() + 1 > EC_MAX_PORTS)
    return make_error("too many port rules",
                      "the map `ports` holds " + std::to_string(EC_MAX_PORTS) +
                          " entries (a port range is up to 30 of them); the old rules and the new ones need more");
  std::uint32_t number = 1;
  while (taken_.contains(number)) ++number;
  taken_.insert(number);
  entries_ += set.size() + 1;
  numbers_[set] = number;
  coming_[number] = std::move(set);
  return number;
}

Status PortSets::write() {
  for (const auto& [number, set] : coming_) {
    for (const Entry& entry : set)
      if (auto written = map_.set(key_of(number, entry), 1); !written) return written;
    if (auto written = map_.set({.prefixlen = EC_PORT_SET_BITS, .port_set = number, .proto = 0, .port = 0}, 0);
        !written)
      return written;
  }
  coming_.clear();
  return Ok{};
}

Status PortSets::remove_unused(const std::set<std::uint32_t>& used) const {
  auto keys = map_.keys();
  if (!keys) return keys.error();
  for (const ec_port_key& key : *keys)
    if (!used.contains(key.port_set))
      if (auto erased = map_.erase(key); !erased) return erased;
  return Ok{};
}

}  // namespace egressclass
