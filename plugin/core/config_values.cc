// SPDX-License-Identifier: Apache-2.0
#include "core/config_values.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

namespace egressclass {
namespace {

constexpr std::size_t kMaxPattern = 253;  // the longest name of a pod
constexpr std::string_view kPatternChars = "abcdefghijklmnopqrstuvwxyz0123456789-.*?";

// Why no machine can have this address, as seen from another one; empty when one can.
std::string special_use(const Ip& ip) {
  constexpr std::array<std::pair<const char*, const char*>, 9> kRanges = {{
      {"0.0.0.0/8", "is an unspecified address"},
      {"127.0.0.0/8", "is a loopback address"},
      {"169.254.0.0/16", "is a link-local address"},
      {"224.0.0.0/4", "is a multicast address"},
      {"240.0.0.0/4", "is a reserved address"},
      {"::/128", "is an unspecified address"},
      {"::1/128", "is a loopback address"},
      {"fe80::/10", "is a link-local address"},
      {"ff00::/8", "is a multicast address"},
  }};
  std::string why;
  for (const auto& [range, reason] : kRanges)
    if (Prefix::parse(range, false, &why)->contains(ip)) return reason;
  return {};
}

// No value also when it is in `seen`, where it is noted.
std::optional<Prefix> read_prefix(const Field& field, LoneAddress lone, std::set<Prefix>* seen) {
  const auto text = field.text();
  if (!text) return {};
  std::string why;
  const auto prefix = Prefix::parse(*text, lone == LoneAddress::kAccepted, &why);
  if (prefix && seen->insert(*prefix).second) return prefix;
  field.refuse(prefix ? "is in this list already" : why);
  return {};
}

}  // namespace

std::vector<Prefix> read_prefixes(const Field& list, LoneAddress lone, bool may_be_empty) {
  std::set<Prefix> seen;
  std::vector<Prefix> prefixes;
  for (const Field& item : list.items(may_be_empty))
    if (const auto prefix = read_prefix(item, lone, &seen)) prefixes.push_back(*prefix);
  return prefixes;
}

std::vector<Destination> read_destinations(const Field& list, const std::vector<PortRule>& ports) {
  std::set<Prefix> seen;
  std::vector<Destination> destinations;
  for (const Field& item : list.items(false)) {
    std::optional<Field> cidr = item;
    std::optional<Field> own_ports;
    if (item.is_object()) {
      if (!item.is_object_of({"cidr", "ports"})) continue;
      cidr = item.required("cidr");
      own_ports = item.member("ports");
    }
    const auto prefix = cidr ? read_prefix(*cidr, LoneAddress::kRefused, &seen) : std::nullopt;
    std::vector<PortRule> rules = own_ports ? read_ports(*own_ports) : ports;
    if (prefix) destinations.push_back({*prefix, std::move(rules)});
  }
  return destinations;
}

std::vector<Prefix> read_except(const Field& list, const std::vector<Destination>& destinations) {
  std::set<Prefix> steered;
  for (const Destination& destination : destinations) steered.insert(destination.prefix);
  std::set<Prefix> seen;
  std::vector<Prefix> prefixes;
  for (const Field& item : list.items()) {
    const auto prefix = read_prefix(item, LoneAddress::kRefused, &seen);
    if (prefix && steered.contains(*prefix))
      item.refuse("is in \"destinations\" of this class too");
    else if (prefix)
      prefixes.push_back(*prefix);
  }
  return prefixes;
}

std::vector<PortRule> read_ports(const Field& list) {
  const std::vector<Field> items = list.items(false);
  std::set<PortRule> rules;
  for (const Field& item : items) {
    const auto text = item.text();
    if (!text) continue;
    if (*text == "any") {
      if (items.size() > 1) item.refuse("stands for everything: it has to be alone");
      continue;
    }
    std::string why;
    const auto rule = PortRule::parse(*text, &why);
    if (!rule)
      item.refuse(why);
    else if (!rules.insert(*rule).second)
      item.refuse("is in this list already");
  }
  return {rules.begin(), rules.end()};
}

std::vector<std::string> read_patterns(const Field& list) {
  std::vector<std::string> patterns;
  for (const Field& item : list.items(false)) {
    const auto text = item.text();
    if (!text) continue;
    if (text->empty() || text->size() > kMaxPattern || text->find_first_not_of(kPatternChars) != std::string::npos)
      item.refuse("must be a pattern of the characters a-z 0-9 - . and the wildcards * ?");
    patterns.push_back(*text);
  }
  return patterns;
}

std::vector<SelectRule> read_select(const Field& list) {
  std::vector<SelectRule> rules;
  for (const Field& item : list.items()) {
    if (!item.is_object_of({"namespaces", "pods"})) continue;
    const auto namespaces = item.member("namespaces");
    const auto pods = item.member("pods");
    if (!namespaces && !pods) item.refuse("would select every pod: give \"namespaces\" or \"pods\"");
    SelectRule rule;
    if (namespaces) rule.namespaces = read_patterns(*namespaces);
    if (pods) rule.pods = read_patterns(*pods);
    rules.push_back(std::move(rule));
  }
  return rules;
}

std::optional<Ip> read_host(const Field& field) {
  const auto text = field.text();
  if (!text) return {};
  const auto ip = Ip::parse(*text);
  const std::string why = ip ? special_use(*ip) : "must be an IP address";
  if (why.empty()) return ip;
  field.refuse(why);
  return {};
}

bool read_choice(const Field& field, const char* usual, const char* chosen) {
  const auto text = field.text();
  if (text && *text != usual && *text != chosen)
    field.refuse("must be \"" + std::string(usual) + "\" or \"" + chosen + '"');
  return text == chosen;
}

}  // namespace egressclass
