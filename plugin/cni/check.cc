// SPDX-License-Identifier: Apache-2.0
#include "cni/codes.h"
#include "cni/verbs.h"
#include "core/applied.h"
#include "datapath/attachment_store.h"
#include "datapath/host_veth.h"
#include "datapath/maps.h"
#include "datapath/pod_datapath.h"
#include "util/file.h"

namespace egressclass::cni {

Result<std::string> check(const Request& request) {
  auto attachment = load_attachment(request.attachment_key());
  if (!attachment) return attachment.error();
  if (!*attachment) return std::string();  // a pod without a class
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

Result<std::string> status(const Request&) {
  const auto node = read_node();
  if (node && node->applied != 0) return std::string();
  const auto attachments = list_attachments();
  auto file = read_file(kConfigPath, kMaxConfigBytes);
  if (file && !*file && attachments.empty()) return std::string();  // no configuration: nothing to be ready for
  Error error{attachments.empty() ? codes::kPluginNotAvailable : codes::kLimitedConnectivity,
              "the egress datapath is not applied", "run `egressctl apply` (or start egressclass.service)"};
  if (!attachments.empty())
    error.details += "; the traffic of " + std::to_string(attachments.size()) + " running pods is dropped until then";
  return error;
}

}  // namespace egressclass::cni
