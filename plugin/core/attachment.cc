// SPDX-License-Identifier: Apache-2.0
#include "core/attachment.h"

#include "cni/codes.h"
#include "util/json.h"

namespace egressclass {
namespace {

constexpr std::uint32_t kRecordVersion = 1;
constexpr std::size_t kMaxAnnotation = 256;  // longer than any name of a class: the rest says nothing more

std::string text_at(const Json& json, const char* key) {
  const Json* member = find_member(json, key);
  return member != nullptr && member->is_string() ? member->get<std::string>() : std::string();
}

}  // namespace

std::uint64_t Attachment::cookie() const {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

std::string Attachment::to_json() const {
  Json json = {
      {"version", kRecordVersion},
      {"network", network},
      {"containerID", container_id},
      {"ifname", ifname},
      {"namespace", pod.name_space},
      {"pod", pod.name},
      {"uid", pod.uid},
      {"annotation", pod.annotation ? Json(pod.annotation->substr(0, kMaxAnnotation)) : Json()},
      {"class", class_name},
      {"classID", class_id},
      {"classVNI", class_vni},
      {"hostIfindex", host_ifindex},
      {"hostVeth", host_veth},
      {"hostMAC", mac_text(host_mac)},
      {"podMAC", mac_text(pod_mac)},
      {"addresses", Json::array()},
  };
  for (const Ip& ip : addresses) json["addresses"].push_back(ip.str());
  return dump_json(json) + "\n";
}

Result<Attachment> Attachment::from_json(const std::string& key, const std::string& text) {
  auto json = parse_json(text);
  if (!json) return Error{codes::kStateFailed, "broken attachment record", key + ": " + json.error().details};
  const Json& record = *json;
  if (unsigned_member(record, "version") != kRecordVersion)
    return Error{codes::kStateFailed, "attachment record of another version", key};
  const auto class_id = unsigned_member(record, "classID");
  const auto class_vni = unsigned_member(record, "classVNI");
  const auto ifindex = unsigned_member(record, "hostIfindex", INT32_MAX);
  if (!class_id || !class_vni || !ifindex)
    return Error{codes::kStateFailed, "broken attachment record", key + ": no class, or no host veth"};
  Attachment attachment;
  attachment.key = key;
  attachment.class_id = *class_id;
  attachment.class_vni = *class_vni;
  attachment.host_ifindex = static_cast<int>(*ifindex);
  attachment.network = text_at(record, "network");
  attachment.container_id = text_at(record, "containerID");
  attachment.ifname = text_at(record, "ifname");
  attachment.pod = Pod{text_at(record, "namespace"), text_at(record, "pod"), text_at(record, "uid"), {}};
  if (const Json* annotation = find_member(record, "annotation"); annotation != nullptr && annotation->is_string())
    attachment.pod.annotation = annotation->get<std::string>();
  attachment.class_name = text_at(record, "class");
  attachment.host_veth = text_at(record, "hostVeth");
  attachment.host_mac = parse_mac(text_at(record, "hostMAC")).value_or(Mac{});
  attachment.pod_mac = parse_mac(text_at(record, "podMAC")).value_or(Mac{});
  if (const Json* addresses = find_member(record, "addresses"); addresses != nullptr && addresses->is_array())
    for (const Json& entry : *addresses)
      if (const auto ip = entry.is_string() ? Ip::parse(entry.get<std::string>()) : std::nullopt)
        attachment.addresses.push_back(*ip);
  return attachment;
}

}  // namespace egressclass
