// SPDX-License-Identifier: Apache-2.0
// The calling thread in another network namespace, for as long as an object of this class lives: what it opens
// meanwhile (sockets, files below /proc/sys/net) is of that one.
#pragma once

#include <string>
#include <utility>

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

class InNetns {
 public:
  /// Needs CAP_SYS_ADMIN. `netns`: a file of nsfs, which the caller keeps. `name`: how errors call it.
  static Result<InNetns> enter(const Fd& netns, const std::string& name);
  /// One that has just been made, and that ends with the object unless somebody else holds it by then.
  static Result<InNetns> enter_new(const std::string& name);
  /// Back. Should the kernel refuse that, the process ends: nothing that follows may run in the wrong namespace.
  ~InNetns();
  InNetns(InNetns&&) noexcept = default;
  InNetns& operator=(InNetns&&) = delete;
  InNetns(const InNetns&) = delete;
  InNetns& operator=(const InNetns&) = delete;

 private:
  explicit InNetns(Fd home) : home_(std::move(home)) {}
  Fd home_;
};

}  // namespace egressclass
