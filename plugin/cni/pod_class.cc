// SPDX-License-Identifier: Apache-2.0
#include "cni/pod_class.h"

#include "cni/codes.h"
#include "core/applied.h"
#include "util/file.h"

namespace egressclass::cni {
namespace {

std::string argument(const Request& request, const char* key) {
  const auto found = request.args.find(key);
  return found == request.args.end() ? std::string() : found->second;
}

/// Of the file, as nothing is applied. If it is broken, what was applied last decides who has a class: a typo before
/// a reboot must not stop the pods that have none.
Result<Config> config_of_file() {
  auto text = read_file(kConfigPath, kMaxConfigBytes);
  std::vector<ConfigProblem> problems;
  if (text && !*text) return Config{};
  if (text)
    if (auto config = parse_config(**text, &problems)) return std::move(*config);
  if (auto last = read_last_applied()) return std::move(last->selection);
  const std::string why = text ? format_problems(kConfigPath, problems) : text.error().msg + " " + text.error().details;
  return Error{codes::kConfigUnreadable, "cannot tell the pod's egress class",
               why + "; nothing is applied on this node: mend the file and run `egressctl apply`"};
}

}  // namespace

Pod pod_of(const Request& request) {
  Pod pod{argument(request, "K8S_POD_NAMESPACE"), argument(request, "K8S_POD_NAME"), argument(request, "K8S_POD_UID"),
          std::nullopt};
  if (const auto annotations = request.annotations()) {
    const auto named = annotations->find(kClassAnnotation);
    if (named != annotations->end()) pod.annotation = named->second;
  }
  return pod;
}

Result<std::optional<PodClass>> class_of(const Pod& pod) {
  auto applied = read_applied();
  const bool in_force = applied && *applied;
  auto config = in_force ? Result<Config>((*applied)->selection) : config_of_file();
  if (!config) return config.error();
  auto chosen = choose_class(*config, pod, kConfigPath);
  if (!chosen) return chosen.error();
  if (chosen->chosen == nullptr) return std::optional<PodClass>();
  const ClassConfig& c = *chosen->chosen;
  return std::optional<PodClass>(PodClass{c.name, in_force ? (*applied)->ids.at(c.name) : 0, c.vni});
}

}  // namespace egressclass::cni
