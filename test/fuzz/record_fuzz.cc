// SPDX-License-Identifier: Apache-2.0
// The files that the program itself keeps: a crash, a full disk or a hand may leave anything there.
#include <set>

#include "cni/codes.h"
#include "core/applied.h"
#include "core/attachment.h"
#include "core/mark.h"
#include "fuzz.h"

namespace egressclass::fuzz {
namespace {

void check_attachment(const std::string& text) {
  const std::string key = "net,c1,eth0";
  const auto attachment = Attachment::from_json(key, text);
  if (!attachment) {
    require(attachment.error().code == codes::kStateFailed, "a broken record is a broken state");
    return require_cni_error(attachment.error(), "1.0.0");
  }
  require(attachment->key == key, "a record belongs to its file's name");
  require(attachment->host_ifindex >= 0, "no ifindex is negative");
  const std::string written = attachment->to_json();
  const auto again = Attachment::from_json(key, written);
  require(again && again->to_json() == written, "a record is read as it was written", written);
  require(again->addresses == attachment->addresses && again->host_mac == attachment->host_mac &&
              again->pod_mac == attachment->pod_mac && again->cookie() == attachment->cookie(),
          "a record keeps what DEL goes by", written);
}

void check_applied(const std::string& text) {
  const auto applied = Applied::from_json(text);
  if (!applied) return require(!applied.error().msg.empty(), "a refusal says why");
  std::set<std::string> names;
  for (const ClassConfig& c : applied->selection.classes) {
    names.insert(c.name);
    require(applied->ids.contains(c.name), "a class has an id", c.name);
  }
  require(names.size() == applied->ids.size(), "an id has a class");
  for (const auto& [slot, id] : applied->slots) {
    require(names.contains(slot.first), "an egress IP is of a class", slot.first);
    require(id != 0 && id <= max_class_index(applied->selection.mark_mask), "the id of an egress IP is one");
  }
  const std::string written = applied->to_json();
  const auto again = Applied::from_json(written);
  require(again && again->to_json() == written && again->ids == applied->ids && again->slots == applied->slots,
          "what is applied is read as written");
  for (const char* name_space : {"", "shop"}) {
    const Pod pod{name_space, "checkout-1", "", std::nullopt};
    const auto chosen = choose_class(applied->selection, pod, kConfigPath);
    require(static_cast<bool>(chosen), "a pod without annotation is no error");
  }
}

}  // namespace
}  // namespace egressclass::fuzz

FUZZ_TARGET(input) {
  egressclass::fuzz::check_attachment(std::string(input));
  egressclass::fuzz::check_applied(std::string(input));
}
