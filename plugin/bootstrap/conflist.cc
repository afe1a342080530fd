// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/conflist.h"

#include <algorithm>
#include <optional>

#include "util/text.h"

namespace egressclass {
namespace {

constexpr const char* kBlanks = " \t\r\n";

Error unusable(std::string reason) { return make_error("no network configuration", std::move(reason)); }

/// Where each element of the array `plugins` is in the list's text.
struct Span {
  std::size_t begin;
  std::size_t end;
};

/// Of text that parse_json() has accepted.
std::vector<Span> plugin_spans(std::string_view list) {
  const std::string_view array = member_text(list, "plugins");
  if (array.empty()) return {};
  const auto base = static_cast<std::size_t>(array.data() - list.data());
  std::vector<Span> spans;
  std::size_t begin = 1;
  int depth = 0;
  for (std::size_t i = 0; i < array.size(); ++i) {
    const char c = array[i];
    if (c == '"') {
      for (++i; i < array.size() && array[i] != '"'; ++i)
        if (array[i] == '\\') ++i;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']' || c == ',') {
      if (depth == 1 && c != '}') {  // the end of an element
        const std::size_t first = array.find_first_not_of(kBlanks, begin);
        if (first < i) spans.push_back({base + first, base + array.find_last_not_of(kBlanks, i - 1) + 1});
        begin = i + 1;
      }
      if (c != ',') --depth;
    }
  }
  return spans;
}

/// A list's text together with what it says: positions and plugins have the same numbers.
struct Edited {
  std::string text;
  Json plugins;
  std::vector<Span> spans;

  void erase(std::size_t index) {
    if (index > 0)
      text.erase(spans[index - 1].end, spans[index].end - spans[index - 1].end);
    else
      text.erase(spans[0].begin, spans[1].begin - spans[0].begin);
    plugins.erase(index);
    spans = plugin_spans(text);
  }

  /// Set apart from its neighbour as the neighbours are from each other.
  void append(const std::string& entry) {
    const std::size_t last = spans.size() - 1;
    const std::size_t array = text.rfind('[', spans[0].begin) + 1;
    const std::string separator = last > 0 ? text.substr(spans[last - 1].end, spans[last].begin - spans[last - 1].end)
                                           : "," + text.substr(array, spans[0].begin - array);
    text.insert(spans[last].end, separator + entry);
    spans = plugin_spans(text);
  }
};

Result<Edited> open_list(const std::string& text) {
  auto network = parse_network(text, true);
  if (!network) return network.error();
  if (std::ranges::all_of(network->plugins, is_ours))
    return unusable("the list has no plugin but ours, which has to be chained to another");
  Edited list{text, std::move(network->plugins), plugin_spans(text)};
  if (list.spans.size() != list.plugins.size()) return unusable("it is not plain to see where its plugins are");
  return list;
}

bool is_of_type(const Json& plugin, const Json& wanted) {
  const Json* type = find_member(plugin, "type");
  return type != nullptr && *type == wanted;
}

void erase_ours(Edited& list, std::optional<std::size_t> except) {
  for (std::size_t i = list.plugins.size(); i-- > 0;)
    if (i != except && is_ours(list.plugins[i])) list.erase(i);
}

Status read_versions(const Json& json, Network* network) {
  const Json* version = find_member(json, "cniVersion");
  if (version != nullptr && !version->is_string()) return unusable("cniVersion is no text");
  const Json* choice = find_member(json, "cniVersions");
  if (choice != nullptr && !(choice->is_array() && std::ranges::all_of(*choice, &Json::is_string)))
    return unusable("cniVersions is no list of texts");
  if (version != nullptr) network->versions.push_back(version->get<std::string>());
  if (choice != nullptr)
    for (const Json& one : *choice) network->versions.push_back(one.get<std::string>());
  if (network->versions.empty()) network->versions.emplace_back("0.1.0");  // what absence means by the specification
  return Ok{};
}

Status read_plugins(const Json& json, Network* network) {
  const Json* plugins = find_member(json, "plugins");
  if (network->is_list && (plugins == nullptr || !plugins->is_array() || plugins->empty()))
    return unusable("the list has no plugins");
  network->plugins = network->is_list ? *plugins : Json::array({json});
  for (const Json& plugin : network->plugins) {
    const Json* type = find_member(plugin, "type");
    if (type == nullptr || !type->is_string() || type->get<std::string>().empty())
      return unusable(network->is_list ? "a plugin of the list has no type"
                                       : "it has no type: is it a list? Its name has to end in .conflist then");
  }
  return Ok{};
}

Result<Json> parse_object(const std::string& text) {
  if (text.find_first_not_of(kBlanks) == std::string::npos) return unusable("empty");
  if (text.starts_with("\xef\xbb\xbf")) return unusable("it begins with a byte order mark, which runtimes refuse");
  std::vector<std::string> twice;
  auto json = parse_json(text, &twice);
  if (!json) return unusable(json.error().msg + ": " + json.error().details);
  if (!json->is_object()) return unusable("no JSON object");
  for (const std::string& key : twice)
    if (key.find('.') == std::string::npos) return unusable("the key " + in_quotes(key) + " is there twice");
  return json;
}

}  // namespace

Result<Network> parse_network(const std::string& text, bool is_list) {
  auto json = parse_object(text);
  if (!json) return json.error();
  Network network;
  network.is_list = is_list;
  const Json* name = find_member(*json, "name");
  if (name == nullptr || !name->is_string() || name->get<std::string>().empty()) return unusable("it has no name");
  network.name = name->get<std::string>();
  if (const Status status = read_versions(*json, &network); !status) return status.error();
  if (const Status status = read_plugins(*json, &network); !status) return status.error();
  const Json* inlined = find_member(*json, "loadOnlyInlinedPlugins");
  network.only_inlined = inlined != nullptr && *inlined == Json(true);
  return network;
}

Result<std::string> parse_entry(const std::string& text) {
  auto json = parse_object(text);
  if (!json) return make_error("no entry for a list", json.error().details);
  if (!is_ours(*json)) return make_error("no entry for a list", "its type is not " + in_quotes(kEntryType));
  const std::size_t first = text.find_first_not_of(kBlanks);
  return text.substr(first, text.find_last_not_of(kBlanks) + 1 - first);
}

bool is_ours(const Json& plugin) { return is_of_type(plugin, kEntryType); }

bool is_tuning(const Json& plugin) { return is_of_type(plugin, "tuning"); }

bool has_entry(const Network& network) { return std::ranges::any_of(network.plugins, is_ours); }

Result<std::string> with_entry(const std::string& text, const std::string& entry) {
  auto list = open_list(text);
  if (!list) return list.error();
  auto wanted = parse_json(entry);
  if (!wanted) return wanted.error();

  // Where it is in no place to stay: in front of all others nothing is there yet to be chained to, and in front of
  // `tuning` the pod's interface does not have its MAC yet.
  std::optional<std::size_t> place;
  for (std::size_t i = list->plugins.size(); i-- > 1 && !is_tuning(list->plugins[i]);)
    if (is_ours(list->plugins[i])) place = i;
  if (place && list->plugins[*place] != *wanted) {
    const Span old = list->spans[*place];
    list->text.replace(old.begin, old.end - old.begin, entry);
    list->spans = plugin_spans(list->text);
  }
  erase_ours(*list, place);
  if (!place) list->append(entry);
  return std::move(list->text);
}

Result<std::string> with_additions(const std::string& text, const std::string& copy) {
  auto list = open_list(text);
  if (!list) return list.error();
  const auto other = open_list(copy);
  for (std::size_t i = 0; other && i < other->plugins.size(); ++i) {
    const Json& type = other->plugins[i]["type"];
    const auto is_same = [&](const Json& plugin) { return is_of_type(plugin, type); };
    if (is_ours(other->plugins[i]) || std::ranges::any_of(list->plugins, is_same)) continue;
    list->append(copy.substr(other->spans[i].begin, other->spans[i].end - other->spans[i].begin));
  }
  return std::move(list->text);
}

bool same_but_for_entry(const std::string& list, const std::string& other) {
  const auto first = without_entry(list);
  const auto second = without_entry(other);
  return first && second && *parse_json(*first) == *parse_json(*second);
}

Result<std::string> without_entry(const std::string& text) {
  auto list = open_list(text);
  if (!list) return list.error();
  erase_ours(*list, {});
  return std::move(list->text);
}

std::string as_list(const std::string& single) {
  const std::string_view version = member_text(single, "cniVersion");
  const std::size_t first = single.find_first_not_of(kBlanks);
  const std::string plugin = single.substr(first, single.find_last_not_of(kBlanks) + 1 - first);
  return "{\n  " + (version.empty() ? "" : "\"cniVersion\": " + std::string(version) + ",\n  ") +
         "\"name\": " + std::string(member_text(single, "name")) + ",\n  \"plugins\": [\n    " + plugin + "\n  ]\n}\n";
}

}  // namespace egressclass
