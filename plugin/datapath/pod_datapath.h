// SPDX-License-Identifier: Apache-2.0
// The kernel's state of one classed pod: classifier on its host veth, entries in the maps. Needs what
// `egressctl apply` pinned, and nothing else: no daemon, no library of programs.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/attachment.h"
#include "util/result.h"

namespace egressclass {

/// Whether everything that attach_pod() needs is there.
bool pod_datapath_ready();

/// Makes the kernel's state that of `attachment` and verifies it. Doing it twice is doing it once. Each step leaves
/// something that detach_pod() finds by the record, and before the last one nothing that lets a packet through.
Status attach_pod(const Attachment& attachment);

/// Undoes attach_pod(), however far it came and whatever is gone since. The host veth is taken down before the
/// classifier leaves it: the pod's kernel may still have segments to send.
Status detach_pod(const Attachment& attachment);

/// Whether there can be anything of an attachment: `egressctl apply` has run since the last boot.
bool state_exists();

/// What the kernel itself knows of an attachment whose record is lost: enough for detach_pod().
/// No value: nothing.
Result<std::optional<Attachment>> recover_attachment(const std::string& key);

/// Compares the kernel's state with the record (codes kCheckFailed). Changes nothing. For many pods: what all of them
/// have in common, the pinned maps and programs, is looked at once.
class PodChecker {
 public:
  static Result<PodChecker> open();
  PodChecker(PodChecker&&) noexcept;
  ~PodChecker();
  Status check(const Attachment& attachment) const;

 private:
  struct Common;
  explicit PodChecker(std::unique_ptr<Common> common);
  std::unique_ptr<Common> common_;
};

/// The same for one.
Status check_pod(const Attachment& attachment);

}  // namespace egressclass
