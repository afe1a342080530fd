// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <string>

#include "core/mark.h"
#include "ctl/commands.h"
#include "ctl/table.h"
#include "datapath/attachment_store.h"
#include "datapath/maps.h"
#include "datapath/pod_datapath.h"
#include "util/json.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

std::string mark_text(const Attachment& attachment) {
  const auto node = read_node();
  return node ? hex(deposit_bits(attachment.class_id, node->mark_mask)) : "-";
}

Json to_json(const Attachment& attachment) {
  auto checked = check_pod(attachment);
  Json json = {{"namespace", attachment.pod.name_space},
               {"name", attachment.pod.name},
               {"uid", attachment.pod.uid},
               {"class", attachment.class_name},
               {"mark", mark_text(attachment)},
               {"addresses", Json::array()},
               {"hostVeth", attachment.host_veth},
               {"hostIfindex", attachment.host_ifindex},
               {"network", attachment.network},
               {"containerID", attachment.container_id},
               {"ifname", attachment.ifname},
               {"inForce", static_cast<bool>(checked)},
               {"problem", checked ? Json() : Json(checked.error().details)}};
  for (const Ip& ip : attachment.addresses) json["addresses"].push_back(ip.str());
  return json;
}

}  // namespace

int pods(bool json) {
  std::vector<std::string> unreadable;
  const auto attachments = list_attachments(&unreadable);
  for (const std::string& problem : unreadable) std::fprintf(stderr, "egressctl: %s\n", problem.c_str());
  Json list = Json::array();
  for (const Attachment& attachment : attachments) list.push_back(to_json(attachment));
  if (json) {
    std::printf("%s\n", dump_json(list).c_str());
    return unreadable.empty() ? kSuccess : kFailure;
  }
  Table table({"NAMESPACE", "POD", "CLASS", "MARK", "ADDRESSES", "HOST VETH", "IN FORCE"});
  for (const Json& pod : list) {
    std::string addresses;
    for (const Json& address : pod["addresses"])
      addresses += (addresses.empty() ? "" : ",") + address.get<std::string>();
    table.add({pod["namespace"], pod["name"], pod["class"], pod["mark"], addresses, pod["hostVeth"],
               pod["inForce"].get<bool>() ? "yes" : "no: " + pod["problem"].get<std::string>()});
  }
  table.print();
  return unreadable.empty() ? kSuccess : kFailure;
}

}  // namespace egressclass::ctl
