// SPDX-License-Identifier: Apache-2.0
// A whole call as the runtime makes it: lines "NAME=VALUE" are the environment, what follows the first empty line is
// stdin. CNI-2, 5, 6, 7, 9, 11, 17 to 21.
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <vector>

#include "cni/codes.h"
#include "cni/log.h"
#include "cni/pod_class.h"
#include "fuzz.h"

namespace egressclass::fuzz {
namespace {

using nlohmann::ordered_json;

bool is_identifier(const std::string& text) {
  static const std::regex form("[a-zA-Z0-9][a-zA-Z0-9_.-]*", std::regex::optimize);
  return text.size() < 1000 && std::regex_match(text, form);  // the library's matcher recurses
}

std::string verb_of(const cni::Request& request) {
  static const std::map<cni::Verb, std::string> names = {
      {cni::Verb::kAdd, "ADD"}, {cni::Verb::kDel, "DEL"},       {cni::Verb::kCheck, "CHECK"},
      {cni::Verb::kGc, "GC"},   {cni::Verb::kStatus, "STATUS"}, {cni::Verb::kVersion, "VERSION"}};
  return names.at(request.verb);
}

void check_fields(const cni::Request& request, const std::string& input) {
  static const std::set<std::string> versions = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
  require(versions.contains(request.cni_version), "a request has a version of ours", request.cni_version);
  require(is_identifier(request.network) || request.network.size() >= 1000, "a request has a network");
  require(ordered_json::parse(input, nullptr, false).is_object(), "a request came as a JSON object");
  const std::string verb = verb_of(request);
  if (verb == "GC" || verb == "STATUS") return require(request.cni_version == "1.1.0", "GC and STATUS came with 1.1.0");

  require(is_identifier(request.container_id) || request.container_id.size() >= 1000, "a request has a container");
  require(!request.ifname.empty() && request.ifname.size() <= 15, "the name of the interface is of its length");
  require(request.ifname.find_first_of("/: \t\r\v\f") == std::string::npos, "the name of the interface is one");
  if (verb == "DEL") return;
  require(!request.netns.empty(), "ADD and CHECK have a namespace");
  require(request.attachment_key().size() <= cni::kMaxAttachmentKey, "the key fits into a file name");
  if (verb == "CHECK") require(request.cni_version >= "0.4.0", "CHECK came with 0.4.0 or later");
}

/// A result without what the versions write differently.
ordered_json neutral(ordered_json result, bool converted) {
  result.erase("cniVersion");
  if (!converted) return result;
  static const std::vector<std::pair<const char*, std::vector<const char*>>> differing = {
      {"ips", {"version"}},
      {"interfaces", {"mtu", "socketPath", "pciID"}},
      {"routes", {"mtu", "advmss", "priority", "table", "scope"}}};
  for (const auto& [list, keys] : differing)
    if (result.contains(list) && result[list].is_array())
      for (auto& entry : result[list])
        for (const char* key : keys)
          if (entry.is_object()) entry.erase(key);
  return result;
}

void check_result(const cni::Request& request, const std::string& input) {
  const auto output = cni::pass_through(request);
  if (!output) return require_cni_error(output.error(), request.cni_version);
  const auto before = ordered_json::parse(input)["prevResult"];
  const auto after = ordered_json::parse(*output, nullptr, false);
  require(after.is_object(), "the result is a JSON object", *output);
  require(after["cniVersion"] == request.cni_version, "the result is of the version asked for", *output);
  const std::string from = before.contains("cniVersion") && before["cniVersion"].is_string()
                               ? before["cniVersion"].get<std::string>()
                               : request.cni_version;
  const bool converted = (from[0] == '0') != (request.cni_version[0] == '0');
  require(neutral(before, converted).dump() == neutral(after, converted).dump(), "the result is passed on as it is",
          *output);

  const std::string all = before.dump();
  for (const std::string& address : request.result_addresses())
    require(all.find(ordered_json(address).dump()) != std::string::npos, "addresses come from the result", address);
}

void check_rest(const cni::Request& request) {
  const Pod pod = cni::pod_of(request);
  if (pod.annotation) require(request.annotations().has_value(), "an annotation comes from the runtime");
  const auto settings = cni::log_settings(request.config);
  if (!settings) {
    require(settings.error().code == codes::kUnsupportedField, "a bad log setting is an unsupported field");
    return require_cni_error(settings.error(), request.cni_version);
  }
  static const std::set<std::string> levels = {"debug", "info", "warning", "error", "off"};
  require(levels.contains(settings->level), "the log level is one of the five", settings->level);
  require(settings->file.empty() || settings->file[0] == '/', "the log file is an absolute path", settings->file);
}

}  // namespace
}  // namespace egressclass::fuzz

FUZZ_TARGET(input) {
  using namespace egressclass;
  using namespace egressclass::fuzz;
  std::map<std::string, std::string> env;
  for (std::string line; !(line = take(&input, '\n')).empty();) {
    std::string_view value = line;
    const std::string name = take(&value, '=');
    env[name] = std::string(value.substr(0, value.find('\0')));
  }
  const std::string stdin_text(input);

  int reads = 0;
  std::string version;
  const auto request = cni::parse_request(
      [&env](const char* name) {
        const auto found = env.find(name);
        return found == env.end() ? nullptr : found->second.c_str();
      },
      [&] {
        ++reads;
        return Result<std::string>(stdin_text);
      },
      &version);
  require(reads <= 1, "stdin is read once");
  if (!request) {
    require(env["CNI_COMMAND"] != "VERSION", "VERSION succeeds");
    return require_cni_error(request.error(), version);
  }
  require(verb_of(*request) == env["CNI_COMMAND"], "the verb is the one asked for");
  if (request->verb == cni::Verb::kVersion) {
    const auto answer = nlohmann::json::parse(cni::format_version(request->cni_version), nullptr, false);
    require(answer.is_object() && answer["supportedVersions"].size() == 5, "VERSION answers with the versions");
    return;
  }
  require(version == request->cni_version, "an error that follows has the version of the request");
  check_fields(*request, stdin_text);
  if (request->verb == cni::Verb::kAdd) check_result(*request, stdin_text);
  check_rest(*request);
}
