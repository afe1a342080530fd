// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/conf_folder.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "util/file.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOwnSuffix = "-egressclass.conflist";
constexpr const char* kDropInName = "50-egressclass.conf";

bool is_network(const fs::path& path) {
  // Not path.extension(): to Go, and so to runtimes, ".conflist" alone is an extension too.
  const std::string name = path.filename();
  return name.ends_with(".conf") || name.ends_with(".conflist") || name.ends_with(".json");
}

Result<std::string> content_of(const std::string& path) {
  auto content = read_file(path, kMaxNetworkBytes);
  if (!content) return content.error();
  if (!*content) return make_error("no such file", path + ": a link to nowhere");
  return std::move(**content);
}

Result<NetworkFile> load(const std::string& path) {
  auto text = content_of(path);
  if (!text) return make_error(text.error().msg, text.error().msg + ": " + text.error().details);
  auto network = parse_network(*text, path.ends_with(".conflist"));
  if (!network) return make_error(network.error().msg, path + ": " + network.error().details);
  return NetworkFile{path, std::move(*text), std::move(*network)};
}

void add_own(std::vector<OwnFile>& list, const std::string& path) {
  if (auto text = content_of(path)) list.push_back({path, std::move(*text)});
}

}  // namespace

Result<Survey> survey_folder(const std::string& folder, Runtime runtime) {
  Survey survey;
  survey.folder = folder;
  std::error_code ec;
  std::vector<fs::path> networks;
  for (fs::directory_iterator entry(folder, ec), end; !ec && entry != end; entry.increment(ec)) {
    std::error_code unknown;
    const fs::path& path = entry->path();
    if (entry->symlink_status(unknown).type() == fs::file_type::directory) {
      if (fs::exists(path / kDropInName, unknown)) add_own(survey.drop_ins, path / kDropInName);
    } else if (path.filename().string().ends_with(kOwnSuffix)) {
      add_own(survey.own_lists, path);
    } else if (is_network(path)) {
      networks.push_back(path);
    }
  }
  if (ec && ec != std::errc::no_such_file_or_directory) return system_error("cannot read folder", folder, ec.value());

  std::ranges::sort(networks, {}, [](const fs::path& path) { return path.filename().string(); });
  for (const fs::path& path : networks) {
    auto file = load(path);
    if (file)
      survey.files.push_back(std::move(*file));
    else
      survey.broken.push_back(file.error().details);
    if (!file && runtime == Runtime::kContainerd && survey.files.empty()) survey.blocked = true;
  }
  return survey;
}

std::string late_tuning(const Survey& survey, const Network& network, bool ours_is_drop_in) {
  std::vector<fs::path> late;
  std::error_code ec;
  for (fs::directory_iterator entry(fs::path(survey.folder) / network.name, ec), end; !ec && entry != end;
       entry.increment(ec)) {
    const fs::path& path = entry->path();
    if (path.extension() != ".conf" || (ours_is_drop_in && path.filename() <= kDropInName)) continue;
    const auto text = content_of(path);
    const auto plugin = text ? parse_json(*text) : Result<Json>(text.error());
    if (plugin && is_tuning(*plugin)) late.push_back(path);
  }
  const auto first = std::ranges::min_element(late);
  return network.only_inlined || first == late.end() ? std::string() : first->string();
}

std::string own_list_path(const std::string& file) { return file.substr(0, file.rfind('.')) + std::string(kOwnSuffix); }

std::string drop_in_path(const std::string& folder, const std::string& network) {
  return fs::path(folder) / network / kDropInName;
}

}  // namespace egressclass
