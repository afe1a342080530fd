// SPDX-License-Identifier: Apache-2.0
// Asking on a link who has an address, and telling that this node has it: ARP (RFC 826, RFC 5227) and neighbour
// discovery (RFC 4861), from a packet socket, so that the address need not be one of an interface.
#pragma once

#include "core/ip.h"
#include "datapath/netlink.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

class NeighbourMessages {
 public:
  static Result<NeighbourMessages> open();

  /// From no address: who has it answers, and nobody notes anything.
  Status ask(const Link& link, const Ip& ip) const;
  /// To all on the link. IPv4 by a request and a reply about itself: of both kinds there are hosts that believe only
  /// one.
  Status tell(const Link& link, const Ip& ip) const;

 private:
  explicit NeighbourMessages(Fd socket) : socket_(std::move(socket)) {}
  Fd socket_;
};

}  // namespace egressclass
