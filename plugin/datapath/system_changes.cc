// SPDX-License-Identifier: Apache-2.0
#include "datapath/system_changes.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>

#include "datapath/paths.h"
#include "util/all_errors.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/json.h"
#include "util/spare_file.h"

namespace egressclass {
namespace {

constexpr std::size_t kMaxBytes = 4U << 20U;

Error broken(const std::string& why) {
  return make_error("broken state file",
                    std::string(paths::kSystemChanges) + ": " + why + "; remove it, then put sysctls back by hand");
}

std::string sysctl_path(const std::string& name) { return "/proc/sys/" + name; }

}  // namespace

Result<std::string> read_sysctl(const std::string& name) {
  auto text = read_file(sysctl_path(name), 4096);
  if (!text) return text.error();
  if (!*text) return make_error("no such sysctl", name);
  std::string value = **text;
  while (!value.empty() && value.back() == '\n') value.pop_back();
  return value;
}

Status write_sysctl(const std::string& name, const std::string& value) {
  const Fd fd(::open(sysctl_path(name).c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd || ::write(fd.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
    return system_error("cannot set sysctl", name, errno);
  return Ok{};
}

Result<SystemChanges> SystemChanges::load() {
  SystemChanges changes;
  auto text = read_file(paths::kSystemChanges, kMaxBytes);
  if (!text) return text.error();
  if (!*text) return changes;
  auto json = parse_json(**text);
  if (!json) return broken(json.error().details);
  try {
    for (const auto& [name, value] : json->at("sysctls").items()) changes.sysctls_[name] = value.get<std::string>();
  } catch (const nlohmann::json::exception& e) {
    return broken(e.what());
  }
  return changes;
}

Status SystemChanges::save() const {
  const Json json = {{"sysctls", sysctls_}};
  return write_reserved(paths::kSystemChanges, dump_json(json) + "\n", 0600);
}

Status SystemChanges::set_sysctl(const std::string& name, const std::string& value) {
  auto current = read_sysctl(name);
  if (!current) return current.error();
  if (*current == value) return Ok{};
  if (sysctls_.try_emplace(name, *current).second)
    if (auto saved = save(); !saved) return saved;
  return write_sysctl(name, value);
}

Status SystemChanges::forward_ipv6() {
  const std::string conf = "net/ipv6/conf/";
  auto forwarding = read_sysctl(conf + "all/forwarding");
  if (!forwarding) return forwarding.error();
  if (*forwarding == "1") return Ok{};
  // A router takes no notice of advertisements, unless it is told to (Documentation/networking/ip-sysctl: accept_ra).
  for (const std::string& interface : names_in(sysctl_path(conf))) {
    const std::string name = conf + interface + "/accept_ra";
    if (auto accepts = read_sysctl(name); accepts && *accepts == "1")
      if (auto set = set_sysctl(name, "2"); !set) return set;
  }
  return set_sysctl(conf + "all/forwarding", "1");
}

Status SystemChanges::restore_sysctls() {
  // Whoever made the node a router since (the CNI) relies on every interface.
  auto router = read_sysctl("net/ipv4/conf/all/forwarding");
  const bool keep_forwarding = router && *router == "1";
  AllErrors errors;
  std::erase_if(sysctls_, [&](const auto& sysctl) {
    const auto& [name, value] = sysctl;
    const bool is_gone = ::access(sysctl_path(name).c_str(), F_OK) != 0;
    if (is_gone || (keep_forwarding && name.starts_with("net/ipv4/") && name.ends_with("/forwarding"))) return true;
    auto written = write_sysctl(name, value);
    errors.add(written);
    return static_cast<bool>(written);
  });
  errors.add(save());
  return errors.status();
}

}  // namespace egressclass
