// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "core/applied.h"
#include "core/config.h"
#include "core/mark.h"
#include "core/selection.h"
#include "core/target.h"
#include "ctl/commands.h"
#include "datapath/attachment_store.h"
#include "datapath/counters.h"
#include "datapath/explanation.h"
#include "datapath/host_veth.h"
#include "datapath/paths.h"
#include "util/file.h"
#include "util/json.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

int misunderstood(const std::string& what) {
  std::fprintf(stderr, "egressctl: %s\n", what.c_str());
  return kBadConfig;
}

std::string name_of(const Pod& pod) { return printable(pod.name_space) + "/" + printable(pod.name); }

/// By name or network namespace, if they are given: then `ip` may be one that is not the pod's, too.
bool is_asked_for(const Attachment& attachment, const Question& question, const std::optional<Ip>& ip) {
  if (question.pod.empty() && question.netns.empty())
    return ip && std::ranges::find(attachment.addresses, *ip) != attachment.addresses.end();
  if (!question.pod.empty() && attachment.pod.name_space + "/" + attachment.pod.name != question.pod) return false;
  if (question.netns.empty()) return true;
  const auto found = find_pod_interface(question.netns, attachment.ifname);
  return found && found->host.ifindex == attachment.host_ifindex;
}

/// That of the pod which packets to `to` come from.
std::optional<Ip> source_for(const Attachment& attachment, const std::optional<Ip>& ip, const Target& to) {
  if (ip) return ip;
  for (const Ip& address : attachment.addresses)
    if (address.is_v4() == to.address.is_v4()) return address;
  return std::nullopt;
}

/// The text that was applied last; an empty configuration where that is gone.
Config applied_config() {
  auto text = read_file(paths::kAppliedConfig, kMaxConfigBytes);
  std::vector<ConfigProblem> problems;
  auto config = text && *text ? parse_config(**text, &problems) : std::nullopt;
  return config ? *config : Config{};
}

/// Which rule gave the pod its class.
std::string choice_text(const Applied& applied, const Attachment& attachment) {
  const auto choice = choose_class(applied.selection, attachment.pod, kConfigPath);
  if (!choice)
    return "class " + attachment.class_name +
           ", which the pod has since it started; now it would not start: " + choice.error().msg;
  if (choice->chosen == nullptr)
    return "class " + attachment.class_name + ", which the pod has since it started; none is chosen for it now";
  return "class " + attachment.class_name + ", chosen by " + choice->by;
}

int no_such_pod(const Question& question, const std::optional<Applied>& applied) {
  std::string text = "no such pod has a class on this node: nothing of ours touches its packets";
  if (const std::size_t slash = question.pod.find('/'); applied && slash != std::string::npos) {
    const Pod pod{question.pod.substr(0, slash), question.pod.substr(slash + 1), "", std::nullopt};
    const auto choice = choose_class(applied->selection, pod, kConfigPath);
    if (choice && choice->chosen != nullptr)
      text += "; a pod of this name without annotation that starts now gets class " + choice->chosen->name + " by " +
              choice->by;
  }
  std::fprintf(stderr, "egressctl: %s\n", text.c_str());
  return kFailure;
}

Json to_json(const Attachment& attachment, const Ip& source, const Target& to, const Explanation& e) {
  Json gateways = Json::array();
  for (const Ip& gateway : e.gateways) gateways.push_back(gateway.str());
  return {{"namespace", attachment.pod.name_space},
          {"name", attachment.pod.name},
          {"class", attachment.class_name},
          {"from", source.str()},
          {"to", to.str()},
          {"result", e.event ? Json(event_name(*e.event)) : Json()},
          {"dropped", e.event && is_drop(*e.event)},
          {"destination", e.rule ? Json(e.rule->str()) : Json()},
          {"gateway", e.gateway ? Json(e.gateway->str()) : Json()},
          {"gateways", std::move(gateways)},
          {"egressIP", e.egress_ip ? Json(e.egress_ip->str()) : Json()},
          {"mark", e.mark ? Json(hex(*e.mark)) : Json()},
          {"steps", e.steps}};
}

}  // namespace

int explain(const Question& question, bool json) {
  std::string why;
  const auto to = Target::parse(question.to, &why);
  if (!to) return misunderstood("--to " + in_quotes(question.to) + " " + why);
  const auto ip = question.ip.empty() ? std::nullopt : Ip::parse(question.ip);
  if (!question.ip.empty() && !ip) return misunderstood("--ip " + in_quotes(question.ip) + " is no IP address");
  if (!question.pod.empty() && question.pod.find('/') == std::string::npos)
    return misunderstood("--pod " + in_quotes(question.pod) + " must be NAMESPACE/NAME");

  auto applied = read_applied();
  if (!applied) return fail(applied.error());
  const auto attachments = list_attachments();
  const auto found = std::ranges::find_if(
      attachments, [&](const Attachment& attachment) { return is_asked_for(attachment, question, ip); });
  if (found == attachments.end()) return no_such_pod(question, *applied);
  const auto source = source_for(*found, ip, *to);
  if (!source) return misunderstood("pod " + name_of(found->pod) + " has no address of the family of " + to->str());

  auto explanation = egressclass::explain(*found, *source, *to, question.from_port, applied_config());
  if (!explanation) return fail(explanation.error());
  explanation->steps.insert(explanation->steps.begin(), choice_text(applied->value_or(Applied{}), *found));
  if (json) {
    std::printf("%s\n", dump_json(to_json(*found, *source, *to, *explanation)).c_str());
    return kSuccess;
  }
  std::printf("pod %s, %s -> %s\n", name_of(found->pod).c_str(), source->str().c_str(), to->str().c_str());
  std::size_t number = 0;
  for (const std::string& step : explanation->steps) std::printf("%3zu. %s\n", ++number, step.c_str());
  if (explanation->event) std::printf("counted as %s\n", event_name(*explanation->event));
  return kSuccess;
}

}  // namespace egressclass::ctl
