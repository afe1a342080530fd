// SPDX-License-Identifier: Apache-2.0
#include "datapath/orphans.h"

#include <set>

#include "datapath/maps.h"

namespace egressclass {
namespace {

std::uint32_t vni_of_class(std::uint32_t id) {
  auto classes = open_classes_map();
  auto entry = classes ? classes->find(id) : Result<std::optional<ec_class>>(classes.error());
  return entry && *entry ? (*entry)->vni : 0;
}

std::vector<Ip> addresses_of(std::uint64_t cookie) {
  std::vector<Ip> addresses;
  auto endpoints = open_endpoints_map();
  auto entries =
      endpoints ? endpoints->entries() : Result<std::vector<std::pair<ec_ip, ec_endpoint>>>(endpoints.error());
  if (!entries) return addresses;
  for (const auto& [ip, endpoint] : *entries)
    if (endpoint.cookie == cookie) addresses.push_back(from_ec(ip));
  return addresses;
}

}  // namespace

std::string Orphan::text() const {
  std::string ips;
  for (const Ip& ip : addresses) ips += (ips.empty() ? "" : ", ") + ip.str();
  return "the record of a pod with a class is lost (host veth " + host_veth + ", " +
         (ips.empty() ? "no address" : ips) + "): its traffic goes on, but it gets no other class; restart the pod";
}

Result<std::vector<Orphan>> find_orphans(const Netlink& netlink, const std::vector<Attachment>& attachments) {
  std::vector<Orphan> orphans;
  auto map = open_attachments_map();
  if (!map) return orphans;
  auto entries = map->entries();
  if (!entries) return entries.error();
  std::set<std::uint64_t> known;
  for (const Attachment& attachment : attachments) known.insert(attachment.cookie());
  for (const auto& [ifindex, entry] : *entries) {
    if (known.contains(entry.cookie)) continue;
    auto link = netlink.link(static_cast<int>(ifindex));
    if (!link) return link.error();
    orphans.push_back(
        {entry.class_id, vni_of_class(entry.class_id), *link ? (*link)->name : "", addresses_of(entry.cookie)});
  }
  return orphans;
}

}  // namespace egressclass
