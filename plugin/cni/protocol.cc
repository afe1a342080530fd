// SPDX-License-Identifier: Apache-2.0
#include "cni/protocol.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "cni/codes.h"
#include "cni/result.h"
#include "util/text.h"

namespace egressclass::cni {
namespace {

constexpr std::size_t kMaxArgs = 16U << 10U;
constexpr const char* kAnnotationsCapability = "io.kubernetes.cri.pod-annotations";

// What a verb asks of its caller. CNI_PATH is asked of none: this plugin runs no other.
struct VerbRules {
  const char* name;
  Verb verb;
  std::vector<const char*> required;
  const char* since;  // the first version of the specification that has it
};

const std::vector<VerbRules>& all_rules() {
  static const std::vector<VerbRules> rules = {
      {"ADD", Verb::kAdd, {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "0.3.0"},
      {"DEL", Verb::kDel, {"CNI_CONTAINERID", "CNI_IFNAME"}, "0.3.0"},
      {"CHECK", Verb::kCheck, {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "0.4.0"},
      {"GC", Verb::kGc, {}, "1.1.0"},
      {"STATUS", Verb::kStatus, {}, "1.1.0"},
      {"VERSION", Verb::kVersion, {}, "0.3.0"},
  };
  return rules;
}

std::string value_of(const Environment& env, const char* name) {
  const char* value = env(name);
  return value == nullptr ? "" : value;
}

std::string join(const std::vector<std::string>& texts, const char* separator) {
  std::string joined;
  for (const std::string& text : texts) joined += (joined.empty() ? "" : separator) + text;
  return joined;
}

// For network names and container ids: ^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$
bool valid_identifier(std::string_view text) {
  const auto is_alnum = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return !text.empty() && is_alnum(text[0]) &&
         std::all_of(text.begin(), text.end(), [&](char c) { return is_alnum(c) || c == '_' || c == '.' || c == '-'; });
}

// The place of a version among the supported ones, which are in ascending order.
std::optional<std::size_t> rank(const std::string& version) {
  const auto found = std::find(kSupportedVersions.begin(), kSupportedVersions.end(), version);
  if (found == kSupportedVersions.end()) return {};
  return static_cast<std::size_t>(found - kSupportedVersions.begin());
}

Error incompatible(const char* whose, const std::string& version) {
  return Error{
      codes::kIncompatibleVersion, "incompatible CNI versions",
      whose + std::string(" is ") + in_quotes(version) + "; this plugin supports " + join(kSupportedVersions, ", ")};
}

Result<const VerbRules*> find_verb(const Environment& env) {
  const std::string command = value_of(env, "CNI_COMMAND");
  if (command.empty()) return Error{codes::kInvalidEnvironment, "required env variables [CNI_COMMAND] missing", {}};
  const auto& rules = all_rules();
  const auto found = std::find_if(rules.begin(), rules.end(), [&](const VerbRules& r) { return command == r.name; });
  if (found == rules.end())
    return Error{codes::kInvalidEnvironment, "unknown CNI_COMMAND: " + printable(command),
                 "this plugin knows ADD, DEL, CHECK, GC, STATUS and VERSION"};
  return &*found;
}

// "K=V;K2=V2": split at the first `=`, the last of equal keys counts.
Result<std::map<std::string, std::string>> parse_args(std::string_view text) {
  if (text.size() > kMaxArgs)
    return Error{codes::kInvalidEnvironment, "CNI_ARGS is too long",
                 std::to_string(text.size()) + " bytes, and at most " + std::to_string(kMaxArgs) + " are accepted"};
  std::map<std::string, std::string> args;
  while (!text.empty()) {
    const std::string_view pair = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(text.size(), pair.size() + 1));
    if (pair.empty()) continue;
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0)
      return Error{codes::kInvalidEnvironment, "CNI_ARGS is no list of KEY=VALUE", "found " + in_quotes(pair)};
    args.insert_or_assign(std::string(pair.substr(0, equals)), std::string(pair.substr(equals + 1)));
  }
  return args;
}

// As the specification's reference reads it.
bool says_yes(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  return text == "1" || text == "TRUE";
}

Status read_environment(const Environment& env, const VerbRules& rules, Request* request) {
  std::vector<std::string> missing;
  for (const char* name : rules.required)
    if (value_of(env, name).empty()) missing.emplace_back(name);
  if (!missing.empty())
    return Error{codes::kInvalidEnvironment, "required env variables [" + join(missing, ",") + "] missing",
                 std::string("CNI_COMMAND is ") + rules.name};
  if (rules.required.empty()) return Ok{};

  request->container_id = value_of(env, "CNI_CONTAINERID");
  request->netns = value_of(env, "CNI_NETNS");
  request->netns_override = says_yes(value_of(env, "CNI_NETNS_OVERRIDE"));
  request->ifname = value_of(env, "CNI_IFNAME");
  if (!valid_identifier(request->container_id))
    return Error{codes::kInvalidEnvironment, "invalid CNI_CONTAINERID",
                 in_quotes(request->container_id) + ": letters, digits, _ . and - only, and the first no sign"};
  if (!valid_ifname(request->ifname))
    return Error{codes::kInvalidEnvironment, "invalid CNI_IFNAME",
                 in_quotes(request->ifname) + ": 1 to 15 characters without blanks, / and : only, and not . or .."};
  auto args = parse_args(value_of(env, "CNI_ARGS"));
  // DEL needs none of them, and an error would keep the plugins behind this one from cleaning up.
  if (!args && request->verb != Verb::kDel) return args.error();
  if (args) request->args = std::move(*args);
  return Ok{};
}

Status decode_config(const std::string& text, Request* request) {
  auto json = parse_json(text);
  if (!json)
    return Error{codes::kDecodingFailure, "cannot decode the network configuration on stdin",
                 json.error().msg + ": " + json.error().details};
  if (!json->is_object())
    return Error{codes::kDecodingFailure, "the network configuration on stdin is no JSON object",
                 std::string("it is of the type ") + json->type_name()};
  request->config = std::move(*json);
  request->prev_result_text = member_text(text, "prevResult");
  const Json* version = find_member(request->config, "cniVersion");
  if (version != nullptr && !version->is_string())
    return Error{codes::kDecodingFailure, "cniVersion is no text", printable(dump_json(*version))};
  request->cni_version = version == nullptr ? "0.1.0" : version->get<std::string>();  // what absence means by the spec
  return Ok{};
}

Status check_config(const VerbRules& rules, Request* request) {
  const Json* name = find_member(request->config, "name");
  if (name == nullptr) return Error{codes::kInvalidNetworkConfig, "missing network name", {}};
  if (name->is_string()) request->network = name->get<std::string>();
  if (!valid_identifier(request->network))
    return Error{codes::kInvalidNetworkConfig, "invalid network name",
                 printable(dump_json(*name)) + ": letters, digits, _ . and - only, and the first no sign"};

  const auto version = rank(request->cni_version);
  if (!version) return incompatible("the network configuration's cniVersion", request->cni_version);
  if (*version < *rank(rules.since))
    return Error{
        codes::kIncompatibleVersion, std::string("config version does not allow ") + rules.name,
        "cniVersion is " + request->cni_version + ", and " + rules.name + " needs " + rules.since + " or newer"};
  return Ok{};
}

Status check_attachment(const Request& request) {
  const bool may_leave_state = request.verb == Verb::kAdd || request.verb == Verb::kCheck;
  if (may_leave_state && request.attachment_key().size() > kMaxAttachmentKey)
    return Error{codes::kInvalidEnvironment, "network name and CNI_CONTAINERID are too long",
                 "together with CNI_IFNAME " + std::to_string(request.attachment_key().size()) +
                     " characters, and at most " + std::to_string(kMaxAttachmentKey) + " are accepted"};
  if (request.verb != Verb::kAdd) return Ok{};
  const Json* result = find_member(request.config, "prevResult");
  if (result == nullptr)
    return Error{codes::kInvalidNetworkConfig, "must be called as a chained plugin",
                 "the configuration has no prevResult: put the entry behind a plugin that makes the interface"};
  if (!result->is_object())
    return Error{codes::kInvalidNetworkConfig, "prevResult is no JSON object",
                 std::string("it is of the type ") + result->type_name()};
  return Ok{};
}

}  // namespace

std::string Request::attachment_key() const { return network + ',' + container_id + ',' + ifname; }

std::vector<std::string> Request::result_addresses() const {
  const Json* result = find_member(config, "prevResult");
  return result == nullptr ? std::vector<std::string>() : addresses_of(*result, ifname);
}

std::optional<std::map<std::string, std::string>> Request::annotations() const {
  const Json* runtime = find_member(config, "runtimeConfig");
  const Json* sent = runtime == nullptr ? nullptr : find_member(*runtime, kAnnotationsCapability);
  if (sent == nullptr || !sent->is_object()) return {};
  std::map<std::string, std::string> annotations;
  for (const auto& [key, value] : sent->items())
    if (value.is_string()) annotations.emplace(key, value.get<std::string>());
  return annotations;
}

Result<Request> parse_request(const Environment& env, const std::function<Result<std::string>()>& read_stdin,
                              std::string* cni_version) {
  const auto rules = find_verb(env);
  if (!rules) return rules.error();
  Request request;
  request.verb = (*rules)->verb;
  if (const Status status = read_environment(env, **rules, &request); !status) return status.error();

  const auto text = read_stdin();
  if (request.verb == Verb::kVersion) {
    // A version answers whatever it is asked; stdin only says in which version.
    if (!text || !decode_config(*text, &request) || !find_member(request.config, "cniVersion"))
      request.cni_version.clear();
    return request;
  }
  if (!text) return Error{codes::kIoFailure, "cannot read stdin", text.error().msg + ": " + text.error().details};
  if (const Status status = decode_config(*text, &request); !status) return status.error();
  if (cni_version != nullptr && rank(request.cni_version)) *cni_version = request.cni_version;
  if (const Status status = check_config(**rules, &request); !status) return status.error();
  if (const Status status = check_attachment(request); !status) return status.error();
  return request;
}

Result<std::string> pass_through(const Request& request) {
  const Json* previous = find_member(request.config, "prevResult");
  if (previous == nullptr || !previous->is_object())
    return Error{codes::kInvalidNetworkConfig, "no prevResult to pass on", {}};
  const Json* version = find_member(*previous, "cniVersion");
  const std::string from = version == nullptr     ? request.cni_version
                           : version->is_string() ? version->get<std::string>()
                                                  : dump_json(*version);
  if (!rank(from)) return incompatible("prevResult's cniVersion", from);
  if (version != nullptr && from == request.cni_version && !request.prev_result_text.empty())
    return request.prev_result_text;
  Json result = *previous;
  convert_result(&result, from, request.cni_version);
  return dump_json(result);
}

std::string format_error(const Error& error, const std::string& cni_version) {
  const std::string version = cni_version.empty() ? kSupportedVersions.back() : cni_version;
  return dump_json({{"cniVersion", version}, {"code", error.code}, {"msg", error.msg}, {"details", error.details}});
}

std::string format_version(const std::string& asked) {
  const std::string version = rank(asked) ? asked : kSupportedVersions.back();
  return dump_json({{"cniVersion", version}, {"supportedVersions", kSupportedVersions}});
}

}  // namespace egressclass::cni
