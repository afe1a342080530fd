// SPDX-License-Identifier: Apache-2.0
#include "datapath/integrity.h"

#include <bpf/bpf.h>
#include <nftables/libnftables.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string_view>

#include "datapath/paths.h"
#include "util/c_handle.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/json.h"

namespace egressclass {
namespace {

/// Those that only an apply writes.
constexpr const char* kStaticMaps[] = {"classes", "vnis", "rules"};
constexpr std::size_t kMaxBytes = 1U << 20U;

using Fingerprint = std::map<std::string, std::uint64_t>;  // object -> hash of its content

std::uint64_t hash_of(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

/// Without what differs from listing to listing: handles, and the order of a set's elements.
void make_canonical(Json& value) {
  if (value.is_object()) value.erase("handle");
  if (value.is_structured())
    for (Json& member : value) make_canonical(member);
  if (!value.is_object()) return;
  for (const char* list : {"elem", "set"})
    if (const auto found = value.find(list); found != value.end() && found->is_array())
      std::ranges::sort(found->get_ref<Json::array_t&>(), {}, dump_json);
}

/// Packets change these themselves.
bool is_dynamic(const Json& set) {
  const Json* flags = find_member(set, "flags");
  return flags != nullptr && flags->is_array() &&
         std::ranges::any_of(*flags, [](const Json& flag) { return flag == "dynamic" || flag == "timeout"; });
}

/// A chain counts with its rules, in their order.
void add_nft(const Json& listing, Fingerprint& fingerprint) {
  const Json* entries = find_member(listing, "nftables");
  if (entries == nullptr || !entries->is_array()) return;
  for (Json entry : *entries)
    for (const auto& [kind, object] : entry.items()) {
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
std::optional<std::uint64_t> hash_of_map(const std::string& name) {
  const Fd map(bpf_obj_get((std::string(paths::kMapPins) + "/" + name).c_str()));
  bpf_map_info info{};
  __u32 size = sizeof(info);
  if (!map || bpf_obj_get_info_by_fd(map.get(), &info, &size) != 0) return std::nullopt;
  std::uint64_t sum = 0;
  std::string key(info.key_size, '\0');
  std::string value(info.value_size, '\0');
  for (const char* previous = nullptr; bpf_map_get_next_key(map.get(), previous, key.data()) == 0;
       previous = key.data())
    if (bpf_map_lookup_elem(map.get(), key.data(), value.data()) == 0) sum += hash_of(key + value);
  return sum;
}

Fingerprint take(const std::optional<Json>& table) {
  Fingerprint fingerprint;
  if (table) add_nft(*table, fingerprint);
  for (const char* name : kStaticMaps)
    if (const auto hash = hash_of_map(name)) fingerprint[std::string("BPF map ") + name] = *hash;
  return fingerprint;
}

}  // namespace

Status note_integrity() {
  Json noted = Json::object();
  for (const auto& [object, hash] : take(list_table())) noted[object] = hash;
  return write_file_atomic(paths::kIntegrity, dump_json(noted) + "\n", 0600);
}

Result<std::vector<std::string>> altered_objects() {
  auto text = read_file(paths::kIntegrity, kMaxBytes);
  if (!text) return text.error();
  auto noted = parse_json(text->value_or(""));
  if (!noted) return make_error("no fingerprint of what was applied", paths::kIntegrity);
  const auto table = list_table();
  const Fingerprint found = take(table);

  std::vector<std::string> altered;
  for (const auto& [object, hash] : noted->items()) {
    const auto now = found.find(object);
    const bool can_tell = table || object.starts_with("BPF");
    if (can_tell && (now == found.end() || hash != now->second)) altered.push_back(object);
  }
  return altered;
}

}  // namespace egressclass
