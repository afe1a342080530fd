// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "cni/codes.h"
#include "cni/verbs.h"
#include "datapath/attachment_store.h"
#include "datapath/paths.h"
#include "datapath/pod_datapath.h"
#include "util/lock.h"

namespace egressclass::cni {
namespace {

/// By the record, or by what the kernel knows when that is lost or broken. With the node's lock held: an apply or a
/// down under way would show half of itself.
Status detach_and_forget(const std::string& key, const Fd& lock) {
  Attachment self;
  self.key = key;
  if (auto alone = lock_attachment(lock, self.cookie()); !alone) return alone;
  auto attachment = load_attachment(key);
  if (!attachment || !*attachment) attachment = recover_attachment(key);
  if (!attachment) return attachment.error();
  if (*attachment)
    if (auto alone = lock_interface(lock, (*attachment)->host_ifindex); !alone) return alone;
  if (*attachment)
    if (auto detached = detach_pod(**attachment); !detached) return detached;
  return remove_attachment(key);
}

/// Runtimes take a DEL error with these words for success, and skip the plugins before us (go-cni): leaks addresses.
Error without_magic_words(Error error) {
  for (const std::string magic : {"not found", "No such file", "no such file"})
    for (std::string* text : {&error.msg, &error.details})
      for (std::size_t at = 0; (at = text->find(magic)) != std::string::npos;)
        text->replace(at, magic.size(), "absent");
  return error;
}

}  // namespace

Result<std::string> del(const Request& request) {
  if (!state_exists()) return std::string();  // nothing was ever applied here, or not since the last boot
  const auto lock = lock_node(LockMode::kShared);
  if (!lock) return without_magic_words(lock.error());
  if (auto done = detach_and_forget(request.attachment_key(), *lock); !done) return without_magic_words(done.error());
  return std::string();
}

namespace {

/// The keys of the attachments in a list. An error when it is none: taken for a shorter one, it would cost live pods
/// their attachments.
Result<std::set<std::string>> keys_of(const Request& request, const char* name, const Json& list) {
  std::set<std::string> keys;
  if (list.is_null()) return keys;
  const auto malformed = [&](const std::string& what) {
    return Error{codes::kInvalidNetworkConfig, "malformed list of attachments",
                 std::string(name) + ": " + what + "; nothing was removed"};
  };
  if (!list.is_array()) return malformed("is no list");
  for (const Json& entry : list) {
    const Json* container_id = find_member(entry, "containerID");
    const Json* ifname = find_member(entry, "ifname");
    if (container_id == nullptr || ifname == nullptr || !container_id->is_string() || !ifname->is_string())
      return malformed("an entry without the texts \"containerID\" and \"ifname\"");
    Request attachment = request;
    attachment.container_id = container_id->get<std::string>();
    attachment.ifname = ifname->get<std::string>();
    keys.insert(attachment.attachment_key());
  }
  return keys;
}

}  // namespace

Result<std::string> gc(const Request& request) {
  // A missing list is "no information"; null and [] are "no attachments" (what ocicni sends for no pods).
  const char* name = nullptr;
  for (const char* key : {"cni.dev/attachments", "cni.dev/valid-attachments"})
    if (request.config.contains(key)) name = key;
  if (name == nullptr) return std::string();
  auto keep = keys_of(request, name, request.config.at(name));
  if (!keep) return keep.error();
  if (!state_exists()) return std::string();

  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return lock.error();
  std::string problems;
  for (const std::string& key : list_attachment_keys()) {
    if (!key.starts_with(request.network + ",") || keep->contains(key)) continue;
    if (auto done = detach_and_forget(key, *lock); !done)
      problems += (problems.empty() ? "" : "; ") + key + ": " + done.error().msg + ": " + done.error().details;
  }
  if (problems.empty()) return std::string();
  return make_error("some stale attachments could not be removed", problems);
}

}  // namespace egressclass::cni
