// SPDX-License-Identifier: Apache-2.0
// For removing: every step is tried, whatever became of those before it, and all that failed is said at the end.
#pragma once

#include <optional>

#include "util/result.h"

namespace egressclass {

class AllErrors {
 public:
  template <class T>
  void add(const Result<T>& step) {
    if (!step) add(step.error());
  }
  void add(const Error& error) {
    if (!all_)
      all_ = error;
    else
      all_->details += "; also: " + error.msg + ": " + error.details;
  }

  /// The first one, with the others in its details.
  Status status() const { return all_ ? Status(*all_) : Status(Ok{}); }

 private:
  std::optional<Error> all_;
};

}  // namespace egressclass
