// SPDX-License-Identifier: Apache-2.0
#include "datapath/integrity.h"

#include <nftables/libnftables.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string_view>
#include <utility>

#include "datapath/maps.h"
#include "datapath/paths.h"
#include "util/c_handle.h"
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
void add_nft(Json listing, Fingerprint& fingerprint) {
  const auto entries = listing.find("nftables");
  if (entries == listing.end() || !entries->is_array()) return;
  for (Json& entry : *entries)
    for (auto& [kind, object] : entry.items()) {
      const Json* name = find_member(object, kind == "rule" ? "chain" : "name");
      if ((kind != "chain" && kind != "rule" && kind != "set" && kind != "map") || name == nullptr) continue;
      const std::string key = (kind == "rule" ? "chain" : kind) + " " + name->get<std::string>();
      if (is_dynamic(object)) object.erase("elem");
      make_canonical(object);
      fingerprint[key] = hash_of(std::to_string(fingerprint[key]) + dump_json(object));
    }
}

/// No value: there is no such table.
std::optional<Json> list_table() {
  const CHandle<nft_ctx, nft_ctx_free> context(nft_ctx_new(NFT_CTX_DEFAULT));
  if (!context) return std::nullopt;
  nft_ctx_output_set_flags(context.get(), NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_STATELESS);
  nft_ctx_buffer_output(context.get());
  nft_ctx_buffer_error(context.get());
  if (nft_run_cmd_from_buffer(context.get(), "list table inet egressclass") != 0) return std::nullopt;
  auto json = parse_json(nft_ctx_get_output_buffer(context.get()));
  return json ? std::optional<Json>(std::move(*json)) : std::nullopt;
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

/// But for the rules.
Fingerprint take(std::optional<Json> table) {
  Fingerprint fingerprint;
  if (table) add_nft(std::move(*table), fingerprint);
  add_map("classes", open_classes_map(), fingerprint);  // those that only an apply writes
  add_map("vnis", open_vnis_map(), fingerprint);
  return fingerprint;
}

}  // namespace

Status note_integrity(const std::vector<std::pair<ec_rule_key, ec_rule>>& rules) {
  Fingerprint fingerprint = take(list_table());
  fingerprint[kRules] = hash_of_entries(rules);
  const Json noted = fingerprint;
  return write_reserved(paths::kIntegrity, dump_json(noted) + "\n", 0600);
}

Result<std::vector<std::string>> altered_objects() {
  auto text = read_file(paths::kIntegrity, kMaxBytes);
  if (!text) return text.error();
  auto noted = parse_json(text->value_or(""));
  if (!noted) return make_error("no fingerprint of what was applied", paths::kIntegrity);
  auto table = list_table();
  const bool listed = table.has_value();
  Fingerprint found = take(std::move(table));
  if (auto map = open_rules_map())
    if (const auto rules = map->entries()) found[kRules] = hash_of_entries(*rules);

  std::vector<std::string> altered;
  for (const auto& [object, hash] : noted->items()) {
    const auto now = found.find(object);
    const bool can_tell = listed || object.starts_with("BPF");
    if (can_tell && (now == found.end() || hash != now->second)) altered.push_back(object);
  }
  return altered;
}

}  // namespace egressclass
