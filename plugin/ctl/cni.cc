// SPDX-License-Identifier: Apache-2.0
#include "ctl/cni.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "bootstrap/cached_pods.h"
#include "bootstrap/changes.h"
#include "bootstrap/replace.h"
#include "bootstrap/runtime_config.h"
#include "bootstrap/watch.h"
#include "ctl/commands.h"
#include "util/file.h"

namespace egressclass::ctl {
namespace {

constexpr std::size_t kMaxEntryBytes = 64UL << 10U;
constexpr std::size_t kMaxDumpBytes = 4UL << 20U;

struct Options {
  std::string folder;
  Runtime runtime = Runtime::kContainerd;
  std::optional<Way> way;
  Way default_way = Way::kEdit;
  std::string entry_file;
  std::string version_reply;
  bool dry_run = false;
  bool json = false;
  std::string cache = "/var/lib/cni/results";
  std::string root;
};

int refuse(const Error& error) {
  fail(error);
  return kRefused;
}

Result<std::string> read_entry(const std::string& file) {
  if (file.empty()) return std::string(kDefaultEntry);
  auto text = read_file(file, kMaxEntryBytes);
  if (!text) return text.error();
  if (!*text) return make_error("no such file", file);
  auto entry = parse_entry(**text);
  if (!entry) return make_error(entry.error().msg, file + ": " + entry.error().details);
  return entry;
}

/// From the plugin's answer to VERSION.
Result<std::vector<std::string>> spoken_versions(const std::string& reply) {
  std::vector<std::string> versions;
  if (reply.empty()) return versions;
  const auto json = parse_json(reply);
  const Json* list = json ? find_member(*json, "supportedVersions") : nullptr;
  if (list == nullptr || !list->is_array()) return make_error("the plugin does not answer VERSION", reply);
  for (const Json& version : *list)
    if (version.is_string()) versions.push_back(version.get<std::string>());
  return versions;
}

Result<Wanted> read_wanted(const Options& options) {
  auto entry = read_entry(options.entry_file);
  if (!entry) return entry.error();
  auto versions = spoken_versions(options.version_reply);
  if (!versions) return versions.error();
  return Wanted{std::move(*entry), std::move(*versions)};
}

/// Why the runtime has no network.
int explain(const Survey& survey) {
  if (survey.broken.empty()) {
    std::fprintf(stderr, "egressctl: %s has no network configuration yet\n", survey.folder.c_str());
    return kNoNetwork;
  }
  for (const std::string& problem : survey.broken)
    std::fprintf(stderr, "egressctl: the runtime cannot load %s\n", problem.c_str());
  return kBroken;
}

void show(const Change& change, bool dry_run) {
  if (dry_run)
    std::printf("%s", unified_diff(change).c_str());
  else
    std::printf("%s %s\n", !change.before ? "created" : change.after ? "changed" : "removed", change.path.c_str());
  std::fflush(stdout);
}

enum class Carried { kAll, kOvertaken };

Result<Carried> carry_out_all(const std::vector<Change>& changes, const Options& options) {
  for (const Change& change : changes) {
    if (!options.dry_run) {
      auto done = carry_out(change, options.folder);
      if (!done) return done.error();
      if (!*done) return Carried::kOvertaken;
    }
    show(change, options.dry_run);
  }
  return Carried::kAll;
}

/// Plans and carries out until nobody has come in between. `plan` returns the changes, or an exit code.
template <class Plan>
int reconcile(const Options& options, Plan plan) {
  constexpr int kPatience = 20;
  std::error_code ec;
  if (!std::filesystem::exists(options.folder, ec)) {
    std::fprintf(stderr, "egressctl: there is no folder %s yet\n", options.folder.c_str());
    return kNoNetwork;
  }
  const auto lock = options.dry_run ? Result<Fd>(Fd()) : lock_folder(options.folder);
  if (!lock) return fail(lock.error());
  if (!options.dry_run) sweep(options.folder);
  for (int round = 0; round < kPatience; ++round) {
    auto survey = survey_folder(options.folder, options.runtime);
    if (!survey) return fail(survey.error());
    std::vector<Change> changes;
    if (const int code = plan(*survey, &changes); code != kSuccess) return code;
    auto carried = carry_out_all(changes, options);
    if (!carried) return fail(carried.error());
    if (*carried == Carried::kAll) return kSuccess;
  }
  return fail(make_error("somebody else writes without end", options.folder));
}

int install(const Options& options) {
  const auto wanted = read_wanted(options);
  if (!wanted) return refuse(wanted.error());
  return reconcile(options, [&](const Survey& survey, std::vector<Change>* changes) {
    if (survey.effective() == nullptr) return explain(survey);
    auto plan = plan_install(survey, options.way.value_or(present_way(survey, options.default_way)), *wanted);
    if (!plan) return refuse(plan.error());
    *changes = std::move(*plan);
    return kSuccess;
  });
}

int uninstall(const Options& options) {
  const int code = reconcile(options, [](const Survey& survey, std::vector<Change>* changes) {
    *changes = plan_uninstall(survey);
    return kSuccess;
  });
  return code == kNoNetwork ? kSuccess : code;  // nothing is there to be removed
}

bool anything_of_ours(const Survey& survey) {
  return !survey.own_lists.empty() || !survey.drop_ins.empty() ||
         std::ranges::any_of(survey.files, [](const NetworkFile& file) { return has_entry(file.network); });
}

struct Report {
  std::string file;
  std::string network;
  std::string way;
  std::string entry = "absent";
  std::string problem;
  std::vector<std::string> pods_with;     // of any network: made with our plugin in the list
  std::vector<std::string> pods_without;  // of this network: they have no class, whatever the configuration says
};

void add_pods(const Options& options, bool judge_missing, Report* report) {
  for (const CachedPod& pod : cached_pods(options.cache, options.root)) {
    if (pod.has_entry)
      report->pods_with.push_back(pod.name);
    else if (judge_missing && pod.network == report->network)
      report->pods_without.push_back(pod.name);
  }
}

int judge(const Options& options, const Survey& survey, const Wanted& wanted, Report* report) {
  const Way way = options.way.value_or(present_way(survey, options.default_way));
  const NetworkFile* primary = survey.effective();
  if (primary == nullptr) {
    report->problem = survey.broken.empty() ? survey.folder + " has no network configuration yet"
                                            : "the runtime cannot load " + survey.broken.front();
    return survey.broken.empty() ? kNoNetwork : kBroken;
  }
  report->file = primary->path;
  report->network = primary->network.name;
  auto used = way_for(*primary, way);
  report->way = way_name(used ? *used : way);
  auto plan = plan_install(survey, way, wanted);
  if (!plan) {
    report->problem = plan.error().msg + ": " + plan.error().details;
    return anything_of_ours(survey) ? kStale : kAbsent;
  }
  if (plan->empty()) {
    report->entry = "current";
    const std::string late = late_tuning(survey, primary->network, *used == Way::kDropIn);
    if (late.empty()) return kSuccess;
    report->problem = late +
                      " comes after the plugin, and may give pods another MAC: what they send is dropped as spoofed "
                      "then; put it into the list";
    return kStale;
  }
  if (!anything_of_ours(survey)) return kAbsent;
  report->entry = "stale";
  report->problem = plan->front().path + " is not as it should be";
  return kStale;
}

void print(const Report& report, bool json) {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  if (json) {
    std::printf("%s\n", dump_json({{"file", or_null(report.file)},
                                   {"network", or_null(report.network)},
                                   {"way", or_null(report.way)},
                                   {"entry", report.entry},
                                   {"problem", or_null(report.problem)},
                                   {"podsWith", report.pods_with},
                                   {"podsWithout", report.pods_without}})
                            .c_str());
    return;
  }
  std::printf("conflist  %s\n", report.file.empty() ? "none" : report.file.c_str());
  std::printf("entry     %s%s\n", report.entry.c_str(), report.way.empty() ? "" : (" (" + report.way + ")").c_str());
  if (!report.problem.empty()) std::printf("          %s\n", report.problem.c_str());
  for (const std::string& pod : report.pods_without)
    std::printf("pod       %s started without the plugin: restart it to give it its class\n", pod.c_str());
}

int cni_status(const Options& options) {
  const auto wanted = read_wanted(options);
  if (!wanted) return refuse(wanted.error());
  auto survey = survey_folder(options.folder, options.runtime);
  if (!survey) return fail(survey.error());
  Report report;
  int code = judge(options, *survey, *wanted, &report);
  const bool by_list = report.way != way_name(Way::kDropIn);  // what libcni remembers does not show drop-ins
  add_pods(options, code == kSuccess && by_list, &report);
  if (!report.pods_without.empty()) code = kStale;
  print(report, options.json);
  return code;
}

/// What the plugin would be sent for STATUS: how it says what it thinks of the entry.
int print_entry(const Options& options) {
  const auto entry = read_entry(options.entry_file);
  if (!entry) return refuse(entry.error());
  auto json = parse_json(*entry);
  if (!json) return refuse(json.error());
  (*json)["cniVersion"] = "1.1.0";
  (*json)["name"] = "entry";
  std::printf("%s\n", dump_json(*json).c_str());
  return kSuccess;
}

int place_plugin(const std::string& source, const std::string& target) {
  const std::string folder = std::filesystem::path(target).parent_path();
  const auto lock = lock_folder(folder);
  if (!lock) return fail(lock.error());
  sweep(folder);
  auto changed = install_executable(source, target);
  if (!changed) return fail(changed.error());
  if (*changed) std::printf("installed %s\n", target.c_str());
  return kSuccess;
}

/// Two lines, for a shell.
int print_folders(const std::vector<std::string>& files, const std::string& root) {
  Result<CniFolders> folders = CniFolders();
  if (files.empty()) {
    const auto dump = read_all(STDIN_FILENO, "standard input", kMaxDumpBytes);
    if (!dump) return fail(dump.error());
    folders = parse_cni_folders(*dump);
  } else {
    folders = read_cni_folders(files, root);
  }
  if (!folders) return fail(folders.error());
  std::printf("%s\n%s\n", folders->networks.c_str(), folders->plugins.c_str());
  return kSuccess;
}

int watch(const std::vector<std::string>& folders) {
  const Status status = watch_folders(folders);
  return status ? kSuccess : fail(status.error());
}

}  // namespace

void add_cni_commands(CLI::App& app, int* result) {
  auto* cni = app.add_subcommand("cni", "the plugin and its entry in the folders of the runtime (see bootstrap.sh)");
  cni->require_subcommand(1);
  const auto options = std::make_shared<Options>();
  const auto command = [&](const char* name, const char* text, int (*run)(const Options&)) {
    auto* sub = cni->add_subcommand(name, text);
    sub->callback([options, result, run] { *result = run(*options); });
    return sub;
  };
  auto* in = command("install", "put the entry into the network that pods get", install);
  auto* out = command("uninstall", "take the entry out of every network", uninstall);
  auto* show_status = command("status", "whether the entry is there", cni_status);
  auto* entry = command("entry", "the entry, as the plugin is sent it", print_entry);

  const std::map<std::string, Runtime> runtimes{{"containerd", Runtime::kContainerd}, {"crio", Runtime::kCrio}};
  const std::map<std::string, std::optional<Way>> ways{
      {"auto", {}}, {"edit", Way::kEdit}, {"own", Way::kOwn}, {"drop-in", Way::kDropIn}};
  const auto take_folder = [options](const std::string& text) {
    const auto path = (std::filesystem::path(text) / "").lexically_normal();
    options->folder = path.parent_path();
  };
  for (auto* sub : {in, out, show_status}) {
    sub->add_option_function<std::string>("--folder", take_folder, "the runtime's net.d")->required();
    sub->add_option_function<std::string>(
           "--runtime", [options, runtimes](const std::string& name) { options->runtime = runtimes.at(name); },
           "whose rules decide which file is used")
        ->check(CLI::IsMember({"containerd", "crio"}));
  }
  for (auto* sub : {in, show_status}) {
    sub->add_option_function<std::string>(
           "--way", [options, ways](const std::string& name) { options->way = ways.at(name); },
           "auto, edit, own or drop-in")
        ->check(CLI::IsMember({"auto", "edit", "own", "drop-in"}));
    sub->add_option_function<std::string>(
           "--default-way", [options, ways](const std::string& name) { options->default_way = *ways.at(name); },
           "the way of auto, where there is no list or drop-in of our own")
        ->check(CLI::IsMember({"edit", "own"}));
    sub->add_option("--plugin-versions", options->version_reply, "the plugin's answer to VERSION");
  }
  for (auto* sub : {in, show_status, entry})
    sub->add_option("--entry", options->entry_file, "file with the entry; left out: the default");
  for (auto* sub : {in, out}) sub->add_flag("--dry-run", options->dry_run, "show the changes, make none");
  show_status->add_flag("--json", options->json, "for machines");
  show_status->add_option("--cache", options->cache, "libcni's cache")->capture_default_str();
  show_status->add_option("--root", options->root, "in front of the node's paths");

  const auto files = std::make_shared<std::vector<std::string>>();
  auto* plugin = cni->add_subcommand("plugin", "put the plugin into the runtime's folder");
  plugin->add_option("files", *files, "SOURCE TARGET")->required()->expected(2);
  plugin->callback([files, result] { *result = place_plugin(files->at(0), files->at(1)); });
  auto* configured = cni->add_subcommand("folders", "where a runtime's configuration has networks and plugins");
  configured->add_option("files", *files, "in the order in which they count; none: standard input, a dump");
  configured->add_option("--root", options->root, "in front of what they import");
  configured->callback([files, options, result] { *result = print_folders(*files, options->root); });
  auto* folders = cni->add_subcommand("watch", "print a line whenever a folder changes");
  folders->add_option("folders", *files, "which")->required();
  folders->callback([files, result] { *result = watch(*files); });
}

}  // namespace egressclass::ctl
