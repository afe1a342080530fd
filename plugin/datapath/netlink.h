// SPDX-License-Identifier: Apache-2.0
// Links and addresses of one network namespace, over NETLINK_ROUTE.
// A socket belongs to the namespace in which it was made, wherever its thread is later.
#pragma once

#include <netlink/addr.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/ip.h"
#include "core/mac.h"
#include "util/c_handle.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

struct Link {
  int ifindex = 0;
  std::string name;
  std::string kind;  ///< IFLA_INFO_KIND; empty for physical devices
  Mac mac{};
  unsigned mtu = 0;
  bool up = false;
  int peer_ifindex = 0;  ///< IFLA_LINK; the peer's, for kinds veth and netkit
  int peer_nsid = -1;    ///< IFLA_LINK_NETNSID; -1: the same namespace
};

struct InterfaceAddress {
  int ifindex = 0;
  Ip ip;
  unsigned prefix_length = 128;  ///< counted in the 128-bit form
};

/// kHost: never chosen as a source for what goes elsewhere.
inline constexpr int kLoopbackIfindex = 1;  ///< in every namespace

enum class AddressScope { kGlobal, kHost };

class Netlink {
 public:
  static Result<Netlink> open();
  /// A socket in the namespace of `netns`; `name`: how errors call that. The calling thread is back in its own before
  /// this returns.
  static Result<Netlink> open_in(const Fd& netns, const std::string& name);

  Result<std::optional<Link>> link(const std::string& name) const;
  Result<std::optional<Link>> link(int ifindex) const;
  /// All addresses, or those of one interface.
  Result<std::vector<InterfaceAddress>> addresses(int ifindex = 0) const;
  /// The id by which this namespace knows `netns`; -1: it has none.
  Result<int> nsid(const Fd& netns) const;

  Status set_up(int ifindex, bool up) const;
  Status set_mtu(int ifindex, unsigned mtu) const;
  Status delete_link(int ifindex) const;
  /// Host addresses (/32, /128), IPv6 without duplicate address detection: they can be used at once. Present already,
  /// or absent already, is success.
  Status add_address(int ifindex, const Ip& ip, AddressScope scope = AddressScope::kGlobal) const;
  Status delete_address(int ifindex, const Ip& ip) const;

  nl_sock* socket() const { return socket_.get(); }

 private:
  explicit Netlink(CHandle<nl_sock, nl_socket_free> socket) : socket_(std::move(socket)) {}
  CHandle<nl_sock, nl_socket_free> socket_;
};

/// The address itself, all of its bits.
CHandle<nl_addr, nl_addr_put> nl_address(const Ip& ip);

/// An Error from libnl's negative return code.
Error netlink_error(const std::string& what, const std::string& object, int code, const std::string& hint = {});

}  // namespace egressclass
