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

Error unreadable(const std::string& details) {
  return Error{codes::kConfigUnreadable, "cannot tell the pod's egress class",
               details + "; nothing is applied on this node: mend the file and run `egressctl apply`"};
}

Result<Config> config_of_file() {
  auto text = read_file(kConfigPath, kMaxConfigBytes);
  if (!text) return unreadable(text.error().msg + " " + text.error().details);
  if (!*text) return Config{};
  std::vector<ConfigProblem> problems;
  auto config = parse_config(**text, &problems);
  if (!config) return unreadable(format_problems(kConfigPath, problems));
  return std::move(*config);
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
  if (!applied) return applied.error();
  if (*applied) {
    auto chosen = choose_class((*applied)->selection, pod, kConfigPath);
    if (!chosen) return chosen.error();
    if (*chosen == nullptr) return std::optional<PodClass>();
    return std::optional<PodClass>(PodClass{(*chosen)->name, (*applied)->ids.at((*chosen)->name)});
  }
  auto config = config_of_file();
  if (!config) return config.error();
  auto chosen = choose_class(*config, pod, kConfigPath);
  if (!chosen) return chosen.error();
  if (*chosen == nullptr) return std::optional<PodClass>();
  return std::optional<PodClass>(PodClass{(*chosen)->name, 0});
}

}  // namespace egressclass::cni
