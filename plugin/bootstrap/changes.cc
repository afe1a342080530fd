// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/changes.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "bootstrap/replace.h"
#include "util/text.h"

namespace egressclass {
namespace {

namespace fs = std::filesystem;

/// libcni looks for drop-ins in the folder of the network's name: it has to be a name for a folder.
bool is_folder_name(const std::string& name) {
  return name.find('/') == std::string::npos && name != "." && name != "..";
}

std::vector<Change> removals(const std::vector<OwnFile>& files, const std::string& except) {
  std::vector<Change> changes;
  for (const OwnFile& file : files)
    if (file.path != except) changes.push_back({file.path, file.text, {}});
  return changes;
}

/// Takes our entry out of another's file, if it is in there. A file that cannot do without is left alone.
void add_withdrawal(std::vector<Change>& changes, const NetworkFile& file) {
  if (!file.network.is_list || !has_entry(file.network)) return;
  auto without = without_entry(file.text);
  if (without) changes.push_back({file.path, file.text, std::move(*without)});
}

Error located(const Error& error, const NetworkFile& file) {
  return make_error(error.msg, file.path + ": " + error.details);
}

Result<Change> plan_edit(const NetworkFile& primary, const std::string& list, const std::string& entry) {
  auto with = with_entry(list, entry);
  if (!with) return located(with.error(), primary);
  return Change{primary.path, primary.text, std::move(*with)};
}

/// Others who chain a plugin (service meshes) do it where the runtime looks: in our list. What they did stays.
Result<Change> plan_own_list(const Survey& survey, const NetworkFile& primary, const std::string& list,
                             const std::string& entry) {
  Change change{own_list_path(primary.path), {}, {}};
  for (const OwnFile& file : survey.own_lists)
    if (file.path == change.path) change.before = file.text;
  auto whole = with_additions(list, change.before.value_or(""));
  auto with = whole ? with_entry(*whole, entry) : whole;
  if (!with) return located(with.error(), primary);
  change.after = std::move(*with);
  if (change.before && same_but_for_entry(*change.before, *change.after))
    if (auto kept = with_entry(*change.before, entry)) change.after = std::move(*kept);
  return change;
}

/// The first step: what makes the network have the entry.
Result<Change> plan_entry(const Survey& survey, const NetworkFile& primary, Way way, const std::string& entry) {
  if (way == Way::kDropIn) {
    Change change{drop_in_path(survey.folder, primary.network.name), {}, entry + "\n"};
    for (const OwnFile& file : survey.drop_ins)
      if (file.path == change.path) change.before = file.text;
    return change;
  }
  const std::string list = primary.network.is_list ? primary.text : as_list(primary.text);
  return way == Way::kEdit ? plan_edit(primary, list, entry) : plan_own_list(survey, primary, list, entry);
}

Status check_versions(const NetworkFile& primary, const std::vector<std::string>& spoken) {
  for (const std::string& version : primary.network.versions)
    if (!spoken.empty() && std::ranges::find(spoken, version) == spoken.end())
      return make_error("no pod would start",
                        primary.path + ": its CNI version is " + in_quotes(version) +
                            ", which the plugin does not speak: raise it, or ask the CNI's vendor");
  return Ok{};
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
    lines.push_back(text.substr(at, end - at));
    at = end;
  }
  return lines;
}

std::string diff_line(char sign, const std::string& line) {
  return sign + line + (line.ends_with('\n') ? "" : "\n\\ No newline at end of file\n");
}

std::string diff_range(std::size_t first, std::size_t count) {
  return std::to_string(count == 0 ? first : first + 1) + "," + std::to_string(count);
}

}  // namespace

const char* way_name(Way way) {
  switch (way) {
    case Way::kOwn:
      return "own";
    case Way::kDropIn:
      return "drop-in";
    case Way::kEdit:
      break;
  }
  return "edit";
}

Way present_way(const Survey& survey, Way otherwise) {
  if (!survey.own_lists.empty()) return Way::kOwn;
  return survey.drop_ins.empty() ? otherwise : Way::kDropIn;
}

Result<Way> way_for(const NetworkFile& primary, Way wanted) {
  if (wanted == Way::kEdit && !primary.network.is_list) return Way::kOwn;
  if (wanted != Way::kDropIn) return wanted;
  const auto refuse = [&](const char* why) { return make_error("no place for a drop-in", primary.path + ": " + why); };
  if (!primary.network.is_list) return refuse("libcni adds drop-ins to lists (.conflist) only");
  if (primary.network.only_inlined) return refuse("loadOnlyInlinedPlugins is true");
  if (!is_folder_name(primary.network.name)) return refuse("the network's name is no name for a folder");
  return wanted;
}

Result<std::vector<Change>> plan_install(const Survey& survey, Way wanted_way, const Wanted& wanted) {
  const NetworkFile* primary = survey.effective();
  if (primary == nullptr) return make_error("no network", survey.folder);
  auto way = way_for(*primary, wanted_way);
  if (!way) return way.error();
  if (const Status status = check_versions(*primary, wanted.spoken); !status) return status.error();
  auto entry = plan_entry(survey, *primary, *way, wanted.entry);
  if (!entry) return entry.error();

  std::vector<Change> changes;
  if (entry->before != entry->after) changes.push_back(*entry);
  for (const auto* ours : {&survey.own_lists, &survey.drop_ins})
    std::ranges::copy(removals(*ours, entry->path), std::back_inserter(changes));
  if (*way != Way::kEdit) add_withdrawal(changes, *primary);
  return changes;
}

std::vector<Change> plan_uninstall(const Survey& survey) {
  std::vector<Change> changes;
  for (const NetworkFile& file : survey.files) add_withdrawal(changes, file);
  // An own list whose primary is gone is the only network there is.
  if (!survey.files.empty() || !survey.broken.empty())
    std::ranges::copy(removals(survey.own_lists, ""), std::back_inserter(changes));
  std::ranges::copy(removals(survey.drop_ins, ""), std::back_inserter(changes));
  return changes;
}

std::string unified_diff(const Change& change) {
  constexpr std::size_t kContext = 3;
  const auto before = lines_of(change.before.value_or(""));
  const auto after = lines_of(change.after.value_or(""));
  // Our changes are close together: one hunk, from the first line that differs to the last.
  const std::size_t shorter = std::min(before.size(), after.size());
  std::size_t head = 0;
  while (head < shorter && before[head] == after[head]) ++head;
  std::size_t tail = 0;
  while (tail < shorter - head && before[before.size() - 1 - tail] == after[after.size() - 1 - tail]) ++tail;
  const std::size_t first = head - std::min(head, kContext);
  const std::size_t rest = tail - std::min(tail, kContext);

  std::string text = "--- " + (change.before ? change.path : "/dev/null") + "\n+++ " +
                     (change.after ? change.path : "/dev/null") + "\n@@ -" +
                     diff_range(first, before.size() - rest - first) + " +" +
                     diff_range(first, after.size() - rest - first) + " @@\n";
  for (std::size_t i = first; i < head; ++i) text += diff_line(' ', before[i]);
  for (std::size_t i = head; i < before.size() - tail; ++i) text += diff_line('-', before[i]);
  for (std::size_t i = head; i < after.size() - tail; ++i) text += diff_line('+', after[i]);
  for (std::size_t i = before.size() - tail; i < before.size() - rest; ++i) text += diff_line(' ', before[i]);
  return text;
}

Result<bool> carry_out(const Change& change, const std::string& folder) {
  std::error_code ec;
  const bool hidden = fs::is_symlink(change.path, ec) || fs::path(change.path).parent_path() != fs::path(folder);
  auto written = replace_content(change.path, change.before, change.after);
  if (!written) return written.error();
  // A drop-in's folder is libcni's invention: nobody misses an empty one.
  const fs::path parent = fs::path(change.path).parent_path();
  if (!change.after && parent != fs::path(folder)) ::rmdir(parent.c_str());
  if (hidden) poke(folder);
  return *written == Written::kDone;
}

}  // namespace egressclass
