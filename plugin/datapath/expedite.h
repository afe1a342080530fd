// SPDX-License-Identifier: Apache-2.0
// To attach or detach a TCX program the kernel waits for an RCU grace period, with the lock of all network
// configuration (RTNL) held. A normal one takes 5 to 20 ms, an expedited one 0.1 ms. When interfaces come and go the
// kernel expedites of its own accord; here it has to be told, by /sys/kernel/rcu_expedited.
#pragma once

#include "util/fd.h"

namespace egressclass {

/// Grace periods are expedited while one of these lives; the last of all processes to end puts the value back.
/// A value that somebody else has set is left alone. Where the kernel cannot be told, all just takes longer.
/// To be used with the node's lock held.
class Expedite {
 public:
  Expedite();
  ~Expedite();
  Expedite(const Expedite&) = delete;
  Expedite& operator=(const Expedite&) = delete;

  /// Puts the value back that a killed process has left.
  static void mend();

 private:
  Fd marker_;  ///< none: nothing to put back
};

}  // namespace egressclass
