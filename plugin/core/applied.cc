// SPDX-License-Identifier: Apache-2.0
#include "core/applied.h"

#include "cni/codes.h"
#include "core/mark.h"
#include "datapath/paths.h"
#include "util/file.h"
#include "util/json.h"
#include "util/text.h"

namespace egressclass {
namespace {

Json to_json_list(const std::vector<std::string>& texts) {
  Json list = Json::array();
  for (const std::string& text : texts) list.push_back(text);
  return list;
}

std::vector<std::string> texts_of(const Json& list) {
  std::vector<std::string> texts;
  for (const Json& entry : list) texts.push_back(entry.get<std::string>());
  return texts;
}

Json to_json_slots(const std::map<std::pair<std::string, Ip>, std::uint32_t>& slots, const std::string& class_name) {
  Json object = Json::object();
  for (auto slot = slots.lower_bound({class_name, Ip{}}); slot != slots.end() && slot->first.first == class_name;
       ++slot)
    object[slot->first.second.str()] = slot->second;
  return object;
}

}  // namespace

std::string Applied::to_json() const {
  Json list = Json::array();
  for (const ClassConfig& c : selection.classes) {
    Json select = Json::array();
    for (const SelectRule& rule : c.select)
      select.push_back({{"namespaces", to_json_list(rule.namespaces)}, {"pods", to_json_list(rule.pods)}});
    list.push_back({{"name", c.name},
                    {"id", ids.at(c.name)},
                    {"vni", c.vni},
                    {"slots", to_json_slots(slots, c.name)},
                    {"default", c.is_default},
                    {"namespaces", to_json_list(c.entitled)},
                    {"select", select}});
  }
  const Json json = {{"annotations", selection.annotations}, {"markMask", selection.mark_mask}, {"classes", list}};
  return dump_json(json) + "\n";
}

Result<Applied> Applied::from_json(const std::string& text) {
  auto json = parse_json(text);
  if (!json) return json.error();
  const auto mark_mask = unsigned_member(*json, "markMask");
  if (!mark_mask) return make_error("unexpected content", "markMask");
  Applied applied;
  applied.selection.mark_mask = *mark_mask;
  try {
    applied.selection.annotations = json->at("annotations").get<bool>();
    for (const Json& entry : json->at("classes")) {
      ClassConfig c;
      c.name = entry.at("name").get<std::string>();
      const auto id = unsigned_member(entry, "id", max_class_index(*mark_mask));
      const auto vni = unsigned_member(entry, "vni");
      if (!id || *id == 0 || !vni) return make_error("unexpected content", "id or vni of class " + in_quotes(c.name));
      c.vni = *vni;
      if (const Json* slots = find_member(entry, "slots"); slots != nullptr) {  // else of an older version
        if (!slots->is_object()) return make_error("unexpected content", "slots of class " + in_quotes(c.name));
        for (const auto& [address, value] : slots->items()) {
          const auto ip = Ip::parse(address);
          const auto slot = unsigned_member(*slots, address.c_str(), max_class_index(*mark_mask));
          if (!ip || !slot || *slot == 0)
            return make_error("unexpected content", "slots of class " + in_quotes(c.name));
          applied.slots[{c.name, *ip}] = *slot;
        }
      }
      c.is_default = entry.at("default").get<bool>();
      c.entitled = texts_of(entry.at("namespaces"));
      for (const Json& rule : entry.at("select"))
        c.select.push_back({texts_of(rule.at("namespaces")), texts_of(rule.at("pods"))});
      applied.ids[c.name] = *id;
      applied.selection.classes.push_back(std::move(c));
    }
  } catch (const nlohmann::json::exception& e) {
    return make_error("unexpected content", e.what());
  }
  return applied;
}

Attachment reclassed(const Applied& applied, Attachment attachment) {
  const auto choice = choose_class(applied.selection, attachment.pod, kConfigPath);
  if (!choice || choice->chosen == nullptr) return attachment;
  attachment.class_name = choice->chosen->name;
  attachment.class_id = applied.ids.at(choice->chosen->name);
  attachment.class_vni = choice->chosen->vni;
  return attachment;
}

namespace {

Result<std::optional<Applied>> read_applied_from(const char* path) {
  auto text = read_file(path, kMaxConfigBytes);
  if (!text) return text.error();
  if (!*text) return std::optional<Applied>();
  auto applied = Applied::from_json(**text);
  if (!applied)
    return Error{codes::kConfigUnreadable, "the applied configuration is broken",
                 std::string(path) + ": " + applied.error().details + "; run `egressctl apply`"};
  return std::optional<Applied>(std::move(*applied));
}

}  // namespace

Result<std::optional<Applied>> read_applied() { return read_applied_from(paths::kAppliedClasses); }

std::optional<Applied> read_last_applied() {
  auto applied = read_applied_from(paths::kLastClasses);
  return applied ? std::move(*applied) : std::nullopt;
}

}  // namespace egressclass
