// SPDX-License-Identifier: Apache-2.0
#include "agent/pods.h"

#include <sys/stat.h>

#include "datapath/attachment_store.h"
#include "datapath/maps.h"
#include "datapath/paths.h"
#include "util/clock.h"

namespace egressclass::agent {
namespace {

/// File times are those of the last tick of the kernel's clock: two changes within one look like one.
constexpr std::int64_t kTickNs = 20'000'000;

std::int64_t changed_ns() {
  struct stat status {};
  if (::stat(paths::kAttachments, &status) != 0) return 0;
  return static_cast<std::int64_t>(status.st_mtim.tv_sec) * kNsPerSecond + status.st_mtim.tv_nsec;
}

}  // namespace

void Pods::refresh() {
  const std::int64_t changed = changed_ns();
  if (changed == read_of_ns_) return;
  read_of_ns_ = now_ns() - changed > kTickNs ? changed : -1;

  const auto endpoints = open_endpoints_map();
  std::map<Ip, std::shared_ptr<const audit::Identity>> by_address;
  for (const Attachment& attachment : list_attachments()) {
    const auto identity = std::make_shared<const audit::Identity>(attachment.pod, attachment.container_id);
    for (const Ip& address : attachment.addresses) {
      const auto [entry, is_new] = by_address.try_emplace(address, identity);
      if (is_new || !endpoints) continue;
      // A record that its pod left behind, and the one of who has the address now.
      const auto owner = endpoints->find(to_ec(address));
      if (owner && *owner && (*owner)->cookie == attachment.cookie()) entry->second = identity;
    }
  }
  by_address_ = std::move(by_address);
}

std::shared_ptr<const audit::Identity> Pods::find(const Ip& address) const {
  const auto found = by_address_.find(address);
  return found == by_address_.end() ? nullptr : found->second;
}

}  // namespace egressclass::agent
