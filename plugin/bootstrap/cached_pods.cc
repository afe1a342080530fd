// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/cached_pods.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>

#include "bootstrap/conf_folder.h"
#include "util/file.h"
#include "util/text.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

std::string decode_base64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t bits = 0;
  unsigned count = 0;
  for (const char c : text) {
    const std::size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos) break;
    bits = (bits << 6U) | static_cast<std::uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>((bits >> count) & 0xffU);
  }
  return bytes;
}

std::string text_member(const Json& object, const char* key) {
  const Json* member = find_member(object, key);
  return member != nullptr && member->is_string() ? member->get<std::string>() : std::string();
}

std::string argument(const Json& attachment, const char* name) {
  const Json* list = find_member(attachment, "cniArgs");
  if (list == nullptr || !list->is_array()) return {};
  for (const Json& pair : *list)
    if (pair.is_array() && pair.size() == 2 && pair[0] == Json(name) && pair[1].is_string())
      return pair[1].get<std::string>();
  return {};
}

std::string pod_name(const Json& attachment) {
  const std::string name = argument(attachment, "K8S_POD_NAME");
  if (name.empty()) return printable(text_member(attachment, "containerId"));
  return printable(argument(attachment, "K8S_POD_NAMESPACE") + "/" + name, 330);
}

/// Attachments of before a reboot stay in the cache until the runtime comes to them.
bool is_alive(const Json& attachment, const std::string& root) {
  const Json* result = find_member(attachment, "result");
  const Json* interfaces = result == nullptr ? nullptr : find_member(*result, "interfaces");
  if (interfaces == nullptr || !interfaces->is_array()) return true;
  std::error_code ec;
  return std::ranges::none_of(*interfaces, [&](const Json& interface) {
    const std::string sandbox = text_member(interface, "sandbox");
    return !sandbox.empty() && !fs::exists(root + sandbox, ec);
  });
}

std::optional<CachedPod> read_pod(const std::string& path, const std::string& root) {
  auto text = read_file(path, kMaxNetworkBytes);
  if (!text || !*text) return {};
  auto attachment = parse_json(**text);
  if (!attachment || !attachment->is_object() || !is_alive(*attachment, root)) return {};
  const auto network = parse_network(decode_base64(text_member(*attachment, "config")), true);
  if (!network) return {};
  return CachedPod{pod_name(*attachment), network->name, has_entry(*network)};
}

}  // namespace

std::vector<CachedPod> cached_pods(const std::string& cache, const std::string& root) {
  std::vector<CachedPod> pods;
  std::error_code ec;
  for (fs::directory_iterator entry(cache, ec), end; !ec && entry != end; entry.increment(ec))
    if (auto pod = read_pod(entry->path(), root)) pods.push_back(std::move(*pod));
  std::ranges::sort(pods, {}, &CachedPod::name);
  return pods;
}

}  // namespace egressclass
