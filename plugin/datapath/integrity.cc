// SPDX-License-Identifier: Apache-2.0
#include "datapath/integrity.h"

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string_view>
#include <utility>

#include "datapath/gateway_netns.h"
#include "datapath/in_netns.h"
#include "datapath/maps.h"
#include "datapath/nft_table.h"
#include "datapath/paths.h"
#include "util/file.h"
#include "util/json.h"
#include "util/spare_file.h"

namespace egressclass {
namespace {

constexpr std::size_t kMaxBytes = 1U << 20U;

using Fingerprint = std::map<std::string, std::uint64_t>;  // object -> hash of its content

std::uint64_t hash_of(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

template <class T>
std::string_view bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};  // NOLINT(cppcoreguidelines-pro-type-reinterpret-cast)
}

void sort_by_text(Json::array_t& list) {
  std::vector<std::pair<std::string, Json>> sorted;
  for (Json& member : list) sorted.emplace_back(dump_json(member), std::move(member));
  std::ranges::sort(sorted, {}, &std::pair<std::string, Json>::first);
  for (std::size_t i = 0; i < list.size(); ++i) list[i] = std::move(sorted[i].second);
}

/// Without what differs from listing to listing: handles, and the order of a set's elements.
void make_canonical(Json& value) {
  if (value.is_object()) value.erase("handle");
  if (value.is_structured())
    for (Json& member : value) make_canonical(member);
  if (!value.is_object()) return;
  for (const char* list : {"elem", "set"})
    if (const auto found = value.find(list); found != value.end() && found->is_array())
      sort_by_text(found->get_ref<Json::array_t&>());
}

/// Packets change these themselves.
bool is_dynamic(const Json& set) {
  const Json* flags = find_member(set, "flags");
  return flags != nullptr && flags->is_array() &&
         std::ranges::any_of(*flags, [](const Json& flag) { return flag == "dynamic" || flag == "timeout"; });
}

/// A chain counts with its rules, in their order.
void add_nft(Json listing, const std::string& where, Fingerprint& fingerprint) {
  const auto entries = listing.find("nftables");
  if (entries == listing.end() || !entries->is_array()) return;
  for (Json& entry : *entries)
    for (auto& [kind, object] : entry.items()) {
      const Json* name = find_member(object, kind == "rule" ? "chain" : "name");
      if ((kind != "chain" && kind != "rule" && kind != "set" && kind != "map") || name == nullptr) continue;
      const std::string key = where + (kind == "rule" ? "chain" : kind) + " " + name->get<std::string>();
      if (is_dynamic(object)) object.erase("elem");
      make_canonical(object);
      fingerprint[key] = hash_of(std::to_string(fingerprint[key]) + dump_json(object));
    }
}

/// A sum, for the order of a hash table's entries is nobody's doing. The number of entries is in it as well.
template <class Entries>
std::uint64_t hash_of_entries(const Entries& entries) {
  std::uint64_t sum = 0;
  for (const auto& [key, value] : entries) sum += hash_of(std::string(bytes_of(key)).append(bytes_of(value)));
  return sum;
}

template <class Key, class Value>
void add_map(const std::string& name, const Result<BpfMap<Key, Value>>& map, Fingerprint& fingerprint) {
  if (!map) return;
  if (const auto entries = map->entries()) fingerprint["BPF map " + name] = hash_of_entries(*entries);
}

constexpr const char* kRules = "BPF map rules";

constexpr const char* kInGateway = "the gateway's ";

/// No value: there is no such table.
std::optional<Json> list_gateway_table() {
  const auto netns = open_gateway_netns();
  if (!netns || !*netns) return std::nullopt;
  const auto there = InNetns::enter(*netns, paths::kGatewayNetns);
  return there ? list_nft_table() : std::nullopt;
}

struct Taken {
  Fingerprint fingerprint;
  bool host_listed = false;
  bool gateway_listed = false;
};

/// But for the rules.
Taken take() {
  Taken taken;
  if (auto table = list_nft_table()) {
    taken.host_listed = true;
    add_nft(std::move(*table), "", taken.fingerprint);
  }
  if (auto table = list_gateway_table()) {
    taken.gateway_listed = true;
    add_nft(std::move(*table), kInGateway, taken.fingerprint);
  }
  add_map("classes", open_classes_map(), taken.fingerprint);  // those that only an apply writes
  add_map("vnis", open_vnis_map(), taken.fingerprint);
  add_map("egress_ips", open_egress_ips_map(), taken.fingerprint);
  return taken;
}

}  // namespace

Status note_integrity(const std::vector<std::pair<ec_rule_key, ec_rule>>& rules) {
  Fingerprint fingerprint = take().fingerprint;
  fingerprint[kRules] = hash_of_entries(rules);
  const Json noted = fingerprint;
  return write_reserved(paths::kIntegrity, dump_json(noted) + "\n", 0600);
}

Result<std::vector<std::string>> altered_objects() {
  auto text = read_file(paths::kIntegrity, kMaxBytes);
  if (!text) return text.error();
  auto noted = parse_json(text->value_or(""));
  if (!noted) return make_error("no fingerprint of what was applied", paths::kIntegrity);
  auto [found, host_listed, gateway_listed] = take();
  if (auto map = open_rules_map())
    if (const auto rules = map->entries()) found[kRules] = hash_of_entries(*rules);

  std::vector<std::string> altered;
  for (const auto& [object, hash] : noted->items()) {
    const auto now = found.find(object);
    const bool can_tell = object.starts_with("BPF") || (object.starts_with(kInGateway) ? gateway_listed : host_listed);
    if (can_tell && (now == found.end() || hash != now->second)) altered.push_back(object);
  }
  return altered;
}

}  // namespace egressclass
