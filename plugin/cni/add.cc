// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cni/codes.h"
#include "cni/pod_class.h"
#include "cni/verbs.h"
#include "core/attachment.h"
#include "datapath/attachment_store.h"
#include "datapath/host_veth.h"
#include "datapath/maps.h"
#include "datapath/pod_datapath.h"
#include "util/lock.h"

namespace egressclass::cni {
namespace {

Result<Attachment> describe(const Request& request, const Pod& pod, const PodClass& pod_class) {
  auto interface = find_pod_interface(request.netns, request.ifname);
  if (!interface) return interface.error();

  Attachment attachment;
  attachment.key = request.attachment_key();
  attachment.network = request.network;
  attachment.container_id = request.container_id;
  attachment.ifname = request.ifname;
  attachment.pod = pod;
  attachment.class_name = pod_class.name;
  attachment.class_id = pod_class.id;
  attachment.class_vni = pod_class.vni;
  attachment.host_ifindex = interface->host.ifindex;
  attachment.host_veth = interface->host.name;
  attachment.host_mac = interface->host.mac;
  attachment.pod_mac = interface->pod.mac;
  attachment.addresses = interface->addresses;
  // Addresses that the main plugin announces but has not put on the interface (yet) are the pod's all the same.
  for (const std::string& text : request.result_addresses()) {
    const auto ip = Ip::parse(text.substr(0, text.find('/')));
    if (ip && std::ranges::find(attachment.addresses, *ip) == attachment.addresses.end())
      attachment.addresses.push_back(*ip);
  }
  return attachment;
}

Error not_applied(const std::string& name) {
  return Error{codes::kDatapathNotApplied, "egress class \"" + name + "\" is not in force on this node",
               "run `egressctl apply` (or start egressclass.service), then the pod can start; it may not start without "
               "its class, because its traffic would leave with the node's address"};
}

Status attach(const Request& request, const Pod& pod) {
  const auto lock = lock_node(LockMode::kShared);
  if (!lock) return lock.error();
  Attachment self;
  self.key = request.attachment_key();
  if (auto alone = lock_attachment(*lock, self.cookie()); !alone) return alone;
  // Again, now that class ids cannot change.
  auto pod_class = class_of(pod);
  if (!pod_class) return pod_class.error();
  if (!*pod_class) return Ok{};
  const auto node = read_node();
  if ((*pod_class)->id == 0 || !node || node->applied == 0) return not_applied((*pod_class)->name);

  auto attachment = describe(request, pod, **pod_class);
  if (!attachment) return attachment.error();
  if (auto alone = lock_interface(*lock, attachment->host_ifindex); !alone) return alone;
  // While we waited the number may have gone to another pod's interface.
  auto again = describe(request, pod, **pod_class);
  if (!again) return again.error();
  if (again->host_ifindex != attachment->host_ifindex || again->host_mac != attachment->host_mac)
    return Error{codes::kNoHostVeth, "the pod's interface was replaced during ADD", attachment->host_veth};
  // Of the same attachment with another veth: nothing else would remove it.
  if (auto before = load_attachment(attachment->key);
      before && *before && (*before)->host_ifindex != attachment->host_ifindex)
    if (auto detached = detach_pod(**before); !detached) return detached;
  // The record comes first: it is what DEL goes by when this process is killed at any later point.
  if (auto saved = save_attachment(*attachment); !saved) return saved;
  auto attached = attach_pod(*attachment);
  if (attached) return attached;
  Error error = attached.error();
  auto undone = detach_pod(*attachment);
  if (undone) undone = remove_attachment(attachment->key);
  if (!undone) error.details += "; and undoing it failed too: " + undone.error().msg + ": " + undone.error().details;
  return error;
}

}  // namespace

Result<std::string> add(const Request& request) {
  auto result = pass_through(request);
  if (!result) return result;
  if (!request.netns_override && is_own_netns(request.netns))
    return Error{codes::kInvalidNetns, "CNI_NETNS is the runtime's own network namespace",
                 request.netns + "; CNI_NETNS_OVERRIDE=1 says that this is meant"};
  const Pod pod = pod_of(request);
  auto pod_class = class_of(pod);
  if (!pod_class) return pod_class.error();
  if (*pod_class)
    if (auto attached = attach(request, pod); !attached) return attached.error();
  return result;
}

}  // namespace egressclass::cni
