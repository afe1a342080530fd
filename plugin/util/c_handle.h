// SPDX-License-Identifier: Apache-2.0
// Owners for the handles of C libraries: std::unique_ptr with a deleter that costs nothing.
#pragma once

#include <memory>

namespace egressclass {

template <auto Free>
struct CFree {
  template <class T>
  void operator()(T* handle) const {
    Free(handle);
  }
};

template <class T, auto Free>
using CHandle = std::unique_ptr<T, CFree<Free>>;

}  // namespace egressclass
