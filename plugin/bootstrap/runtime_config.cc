// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/runtime_config.h"

#include <glob.h>

#include <filesystem>
#include <set>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "util/file.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

using View = toml::node_view<const toml::node>;

constexpr std::size_t kMaxConfigBytes = 4UL << 20U;
constexpr const char* kHint = "mend it, or name the folders with --conf-dir and --bin-dir";

Result<toml::table> parse(const std::string& text, const std::string& name) {
  auto parsed = toml::parse(text);
  if (parsed) return std::move(parsed).table();
  return make_error("cannot read the runtime's configuration",
                    name + ":" + std::to_string(parsed.error().source().begin.line) + ": " +
                        std::string(parsed.error().description()) + "; " + kHint);
}

/// A text, or the first one of a list.
void take(View value, std::string& folder) {
  const auto text = (value.is_array() ? value[0] : value).value<std::string>();
  if (text && !text->empty() && text->find('$') == std::string::npos) folder = *text;
}

void take_all(const toml::table& table, CniFolders& folders) {
  for (const char* plugin : {"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"}) {
    const auto cni = table["plugins"][plugin]["cni"];
    take(cni["conf_dir"], folders.networks);
    take(cni["bin_dir"], folders.plugins);
    take(cni["bin_dirs"], folders.plugins);
  }
  const auto crio = table["crio"]["network"];
  take(crio["network_dir"], folders.networks);
  take(crio["plugin_dirs"], folders.plugins);
}

/// What `file` imports: paths with or without wildcards, from its own folder on unless they are absolute.
std::vector<std::string> imports(const toml::table& table, const fs::path& file, const std::string& root) {
  std::vector<std::string> found;
  const toml::array* list = table["imports"].as_array();
  if (list == nullptr) return found;
  for (const toml::node& one : *list) {
    const fs::path path = one.value_or(std::string());
    const fs::path whole = path.is_absolute() ? fs::path(root + path.string()) : file.parent_path() / path;
    glob_t names{};
    if (::glob(whole.lexically_normal().c_str(), 0, nullptr, &names) == 0)
      found.insert(found.end(), names.gl_pathv, names.gl_pathv + names.gl_pathc);
    ::globfree(&names);
  }
  return found;
}

}  // namespace

Result<CniFolders> read_cni_folders(std::vector<std::string> files, const std::string& root) {
  CniFolders folders;
  std::set<std::string> seen;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string file = fs::path(files[i]).lexically_normal();  // it may import itself
    if (!seen.insert(file).second) continue;
    auto text = read_file(file, kMaxConfigBytes);
    if (!text) return text.error();
    if (!*text) continue;
    auto table = parse(**text, file);
    if (!table) return table.error();
    take_all(*table, folders);
    const auto more = imports(*table, file, root);
    files.insert(files.end(), more.begin(), more.end());
  }
  return folders;
}

Result<CniFolders> parse_cni_folders(const std::string& dump) {
  auto table = parse(dump, "what it says of itself");
  if (!table) return table.error();
  CniFolders folders;
  take_all(*table, folders);
  return folders;
}

}  // namespace egressclass
