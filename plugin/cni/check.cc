// SPDX-License-Identifier: Apache-2.0
#include "cni/codes.h"
#include "cni/verbs.h"
#include "core/applied.h"
#include "datapath/attachment_store.h"
#include "datapath/host_veth.h"
#include "datapath/maps.h"
#include "datapath/pod_datapath.h"
#include "util/file.h"
#include "util/lock.h"

namespace egressclass::cni {

namespace {

Result<std::string> compare(const Request& request) {
  auto attachment = load_attachment(request.attachment_key());
  if (!attachment) return attachment.error();
  if (!*attachment) {
    auto known = recover_attachment(request.attachment_key());
    if (!known) return known.error();
    if (!*known) return std::string();  // a pod without a class
    return Error{codes::kCheckFailed, "the attachment's record is lost",
                 request.attachment_key() + ": the kernel has its entries, the state folder does not; restart the pod"};
  }
  auto interface = find_pod_interface(request.netns, request.ifname);
  if (!interface) return interface.error();
  if (interface->host.ifindex != (*attachment)->host_ifindex)
    return Error{codes::kCheckFailed, "the pod has another host veth than at ADD",
                 "ADD attached the classifier to " + (*attachment)->host_veth + " (ifindex " +
                     std::to_string((*attachment)->host_ifindex) + "), now it is " + interface->host.name + " (" +
                     std::to_string(interface->host.ifindex) + "); restart the pod"};
  if (auto checked = check_pod(**attachment); !checked) return checked.error();
  return std::string();
}

/// Opens what ADD of a pod with a class opens.
bool can_attach() {
  auto in_force = read_applied();
  return in_force && *in_force && pod_datapath_ready();
}

}  // namespace

/// What looks wrong may be the middle of an apply that gives the pod another class: only without one it is.
Result<std::string> check(const Request& request) {
  auto found = compare(request);
  if (found || !state_exists()) return found;
  const auto lock = lock_node(LockMode::kShared);
  if (!lock) return lock.error();
  return compare(request);
}

Result<std::string> status(const Request&) {
  const auto node = read_node();
  const bool applied = node && node->applied != 0;
  if (applied && can_attach()) return std::string();
  const auto attachments = list_attachments();
  auto file = read_file(kConfigPath, kMaxConfigBytes);
  if (file && !*file && attachments.empty()) return std::string();  // no configuration: nothing to be ready for
  if (applied)
    return Error{codes::kPluginNotAvailable, "the egress datapath is damaged",
                 "a pinned program or map, or the applied state, is missing; run `egressctl apply`"};
  Error error{attachments.empty() ? codes::kPluginNotAvailable : codes::kLimitedConnectivity,
              "the egress datapath is not applied", "run `egressctl apply` (or start egressclass.service)"};
  if (!attachments.empty())
    error.details += "; the traffic of " + std::to_string(attachments.size()) + " running pods is dropped until then";
  return error;
}

}  // namespace egressclass::cni
