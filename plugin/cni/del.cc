// SPDX-License-Identifier: Apache-2.0
#include "cni/verbs.h"
#include "datapath/attachment_store.h"
#include "datapath/paths.h"
#include "datapath/pod_datapath.h"
#include "util/lock.h"

namespace egressclass::cni {
namespace {

Status detach_and_forget(const Attachment& attachment) {
  if (auto detached = detach_pod(attachment); !detached) return detached;
  return remove_attachment(attachment.key);
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
  const std::string key = request.attachment_key();
  auto attachment = load_attachment(key);
  if (!attachment || !*attachment) attachment = recover_attachment(key);
  if (!attachment) return without_magic_words(attachment.error());
  if (!*attachment) {
    if (auto removed = remove_attachment(key); !removed) return without_magic_words(removed.error());
    return std::string();
  }
  const auto lock = lock_node(LockMode::kShared);
  if (!lock) return without_magic_words(lock.error());
  if (auto done = detach_and_forget(**attachment); !done) return without_magic_words(done.error());
  return std::string();
}

Result<std::string> gc(const Request& request) {
  // A missing list is "no information"; null and [] are "no attachments" (what ocicni sends for no pods).
  const Json* valid = nullptr;
  for (const char* key : {"cni.dev/attachments", "cni.dev/valid-attachments"})
    if (request.config.contains(key)) valid = &request.config.at(key);
  if (valid == nullptr) return std::string();

  const auto is_valid = [&](const Attachment& attachment) {
    if (!valid->is_array()) return false;
    for (const Json& entry : *valid)
      if (entry.is_object() && entry.value("containerID", Json()) == Json(attachment.container_id) &&
          entry.value("ifname", Json()) == Json(attachment.ifname))
        return true;
    return false;
  };

  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return lock.error();
  std::vector<std::string> problems;
  for (const Attachment& attachment : list_attachments(&problems)) {
    if (attachment.network != request.network || is_valid(attachment)) continue;
    if (auto done = detach_and_forget(attachment); !done)
      problems.push_back(attachment.key + ": " + done.error().msg + ": " + done.error().details);
  }
  if (problems.empty()) return std::string();
  std::string details;
  for (const std::string& problem : problems) details += (details.empty() ? "" : "; ") + problem;
  return make_error("some stale attachments could not be removed", details);
}

}  // namespace egressclass::cni
