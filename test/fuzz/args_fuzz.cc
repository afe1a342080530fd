// SPDX-License-Identifier: Apache-2.0
// CNI_ARGS against a second reading of its rules. CNI-52, 53.
#include <map>

#include "cni/codes.h"
#include "cni/pod_class.h"
#include "fuzz.h"

namespace egressclass::fuzz {
namespace {

Result<cni::Request> call(const char* verb, const std::string& args) {
  const std::map<std::string, std::string> env = {{"CNI_COMMAND", verb},
                                                  {"CNI_CONTAINERID", "c1"},
                                                  {"CNI_NETNS", "/run/netns/pod"},
                                                  {"CNI_IFNAME", "eth0"},
                                                  {"CNI_ARGS", args}};
  return cni::parse_request(
      [&env](const char* name) {
        const auto found = env.find(name);
        return found == env.end() ? nullptr : found->second.c_str();
      },
      [] { return Result<std::string>(R"({"cniVersion":"1.0.0","name":"net","prevResult":{}})"); });
}

}  // namespace
}  // namespace egressclass::fuzz

FUZZ_TARGET(input) {
  using namespace egressclass;
  using namespace egressclass::fuzz;
  const std::string text(input.substr(0, input.find('\0')));

  bool good = text.size() <= 16384;
  std::map<std::string, std::string> expected;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string pair = take(&rest, ';');
    const auto equals = pair.find('=');
    if (!pair.empty() && (equals == std::string::npos || equals == 0)) good = false;
    if (equals != std::string::npos) expected[pair.substr(0, equals)] = pair.substr(equals + 1);
  }

  const auto add = call("ADD", text);
  require(static_cast<bool>(add) == good, "ADD takes what is a list of KEY=VALUE, and nothing else");
  if (add) {
    require(add->args == expected, "the arguments are those of the list");
    const Pod pod = cni::pod_of(*add);
    require(pod.name_space == expected["K8S_POD_NAMESPACE"] && pod.name == expected["K8S_POD_NAME"] &&
                pod.uid == expected["K8S_POD_UID"] && !pod.annotation,
            "the pod is the one of the arguments");
  } else {
    require(add.error().code == codes::kInvalidEnvironment, "bad arguments are a bad environment");
    require_cni_error(add.error(), "1.0.0");
  }
  require(static_cast<bool>(call("DEL", text)), "DEL succeeds whatever the arguments are");
}
