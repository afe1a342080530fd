// SPDX-License-Identifier: Apache-2.0
#include <net/if.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "ctl/commands.h"
#include "datapath/attachment_store.h"
#include "datapath/bpf_link.h"
#include "datapath/expedite.h"
#include "datapath/link_pins.h"
#include "datapath/node_datapath.h"
#include "util/lock.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

/// Pods that have a class: a record and its interface, or a classifier. The pin of that is the interface's number.
std::vector<std::string> running_pods() {
  std::map<std::string, std::string> pods;
  for (const Attachment& attachment : list_attachments()) {
    std::array<char, IF_NAMESIZE> name{};
    if (::if_indextoname(static_cast<unsigned>(attachment.host_ifindex), name.data()) != nullptr &&
        attachment.host_veth == name.data())
      pods[std::to_string(attachment.host_ifindex)] =
          printable(attachment.pod.name_space + "/" + attachment.pod.name, 330);
  }
  for (const int ifindex : classifier_pins()) {
    auto link = read_link(classifier_pin(ifindex));
    const std::string number = std::to_string(ifindex);
    if (!link || (*link && (*link)->ifindex != 0)) pods.try_emplace(number, "the one behind interface " + number);
  }
  std::vector<std::string> names;
  names.reserve(pods.size());
  for (const auto& [number, name] : pods) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

int refuse(const std::vector<std::string>& pods) {
  constexpr std::size_t kShown = 8;
  std::string names;
  for (std::size_t i = 0; i < std::min(pods.size(), kShown); ++i) names += (i == 0 ? "" : ", ") + pods[i];
  std::fprintf(stderr,
               "egressctl: nothing was changed: %zu running pods have a class, and would be closed for good: %s%s; "
               "end them first (kubectl drain)\n",
               pods.size(), names.c_str(), pods.size() > kShown ? ", ..." : "");
  return kFailure;
}

}  // namespace

int down(bool unless_pods) {
  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return fail(lock.error());
  if (const auto pods = unless_pods ? running_pods() : std::vector<std::string>(); !pods.empty()) return refuse(pods);
  Expedite::mend();
  auto pods = tear_down();
  if (!pods) return fail(pods.error());
  if (*pods != 0)
    std::printf(
        "down, except that %zu running pods have a class: their classifiers stay, and drop what they would have "
        "steered.\nRun `egressctl down` again when those pods are gone.\n",
        *pods);
  return kSuccess;
}

}  // namespace egressclass::ctl
