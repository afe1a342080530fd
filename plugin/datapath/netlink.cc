// SPDX-License-Identifier: Apache-2.0
#include "datapath/netlink.h"

#include <linux/if_addr.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>

#include <cerrno>
#include <cstring>

#include "datapath/in_netns.h"

namespace egressclass {
namespace {

using LinkHandle = CHandle<rtnl_link, rtnl_link_put>;
using AddrHandle = CHandle<rtnl_addr, rtnl_addr_put>;
using Message = CHandle<nl_msg, nlmsg_free>;

Link to_link(rtnl_link* from) {
  Link link;
  link.ifindex = rtnl_link_get_ifindex(from);
  if (const char* name = rtnl_link_get_name(from)) link.name = name;
  if (const char* kind = rtnl_link_get_type(from)) link.kind = kind;
  if (nl_addr* mac = rtnl_link_get_addr(from); mac != nullptr && nl_addr_get_len(mac) == link.mac.size())
    std::memcpy(link.mac.data(), nl_addr_get_binary_addr(mac), link.mac.size());
  link.mtu = rtnl_link_get_mtu(from);
  link.up = (rtnl_link_get_flags(from) & IFF_UP) != 0;
  link.peer_ifindex = rtnl_link_get_link(from);
  if (std::int32_t nsid = -1; rtnl_link_get_link_netnsid(from, &nsid) == 0) link.peer_nsid = nsid;
  return link;
}

Result<std::optional<Link>> get_link(nl_sock* socket, int ifindex, const char* name) {
  rtnl_link* found = nullptr;
  const int err = rtnl_link_get_kernel(socket, ifindex, name, &found);
  if (err == -NLE_NODEV || err == -NLE_OBJ_NOTFOUND) return std::optional<Link>();
  if (err < 0) return netlink_error("cannot read link", name ? name : "ifindex " + std::to_string(ifindex), err);
  const LinkHandle owner(found);
  return std::optional<Link>(to_link(found));
}

AddrHandle host_address(int ifindex, const Ip& ip) {
  AddrHandle address(rtnl_addr_alloc());
  const auto local = nl_address(ip);
  if (!address || !local) return nullptr;
  rtnl_addr_set_ifindex(address.get(), ifindex);
  rtnl_addr_set_local(address.get(), local.get());
  return address;
}

struct AddressDump {
  int ifindex;
  std::vector<InterfaceAddress> found;
};

int collect_address(nl_msg* message, void* context) {
  auto* dump = static_cast<AddressDump*>(context);
  const nlmsghdr* header = nlmsg_hdr(message);
  ifaddrmsg info{};
  std::memcpy(&info, nlmsg_data(header), sizeof(info));
  if (header->nlmsg_type != RTM_NEWADDR || (dump->ifindex != 0 && static_cast<int>(info.ifa_index) != dump->ifindex))
    return NL_OK;
  // IFA_LOCAL is the address itself where it differs from IFA_ADDRESS (point-to-point: the peer).
  const nlattr* attribute = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(ifaddrmsg), IFA_LOCAL);
  if (attribute == nullptr) attribute = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(ifaddrmsg), IFA_ADDRESS);
  if (attribute == nullptr) return NL_OK;
  InterfaceAddress address;
  address.ifindex = static_cast<int>(info.ifa_index);
  if (info.ifa_family == AF_INET && nla_len(attribute) == 4) {
    std::uint32_t v4 = 0;
    std::memcpy(&v4, nla_data(attribute), sizeof(v4));
    address.ip = Ip::from_v4(v4);
    address.prefix_length = 96U + info.ifa_prefixlen;
  } else if (info.ifa_family == AF_INET6 && nla_len(attribute) == 16) {
    std::memcpy(address.ip.bytes.data(), nla_data(attribute), 16);
    address.prefix_length = info.ifa_prefixlen;
  } else {
    return NL_OK;
  }
  dump->found.push_back(address);
  return NL_OK;
}

int collect_nsid(nl_msg* message, void* context) {
  const nlattr* attribute = nlmsg_find_attr(nlmsg_hdr(message), sizeof(rtgenmsg), NETNSA_NSID);
  if (attribute != nullptr) *static_cast<int*>(context) = nla_get_s32(attribute);
  return NL_OK;
}

}  // namespace

CHandle<nl_addr, nl_addr_put> nl_address(const Ip& ip) {
  const std::size_t skip = ip.is_v4() ? 12 : 0;
  return CHandle<nl_addr, nl_addr_put>(
      nl_addr_build(ip.is_v4() ? AF_INET : AF_INET6, ip.bytes.data() + skip, ip.bytes.size() - skip));
}

Error netlink_error(const std::string& what, const std::string& object, int code, const std::string& hint) {
  std::string details = object + ": " + nl_geterror(code);
  if (!hint.empty()) details += "; " + hint;
  Error error = make_error(what, std::move(details));
  return error;
}

Result<Netlink> Netlink::open() {
  CHandle<nl_sock, nl_socket_free> socket(nl_socket_alloc());
  if (!socket) return system_error("cannot open a netlink socket", "NETLINK_ROUTE", ENOMEM);
  if (const int err = nl_connect(socket.get(), NETLINK_ROUTE); err < 0)
    return netlink_error("cannot open a netlink socket", "NETLINK_ROUTE", err);
  // Longer than any message, so that libnl need not look at the length of each before it reads it.
  constexpr std::size_t kLongest = 64U << 10U;
  nl_socket_set_msg_buf_size(socket.get(), kLongest);
  nl_socket_disable_msg_peek(socket.get());
  return Netlink(std::move(socket));
}

Result<Netlink> Netlink::open_in(const Fd& netns, const std::string& name) {
  const auto there = InNetns::enter(netns, name);
  return there ? open() : Result<Netlink>(there.error());
}

Result<std::optional<Link>> Netlink::link(const std::string& name) const { return get_link(socket(), 0, name.c_str()); }

Result<std::optional<Link>> Netlink::link(int ifindex) const { return get_link(socket(), ifindex, nullptr); }

Result<std::vector<InterfaceAddress>> Netlink::addresses(int ifindex) const {
  // A list is cut into several messages; the kernel says when it changed between them (NLM_F_DUMP_INTR).
  constexpr int kTries = 100;
  int err = 0;
  for (int i = 0; i < kTries; ++i) {
    AddressDump dump{ifindex, {}};
    rtgenmsg request{.rtgen_family = AF_UNSPEC};
    CHandle<nl_cb, nl_cb_put> callbacks(nl_cb_alloc(NL_CB_DEFAULT));
    nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, collect_address, &dump);
    err = nl_send_simple(socket(), RTM_GETADDR, NLM_F_DUMP, &request, sizeof(request));
    if (err >= 0) err = nl_recvmsgs(socket(), callbacks.get());
    if (err >= 0) return std::move(dump.found);
    if (err != -NLE_DUMP_INTR) break;
  }
  return netlink_error("cannot list addresses", "RTM_GETADDR", err);
}

Result<int> Netlink::nsid(const Fd& netns) const {
  Message message(nlmsg_alloc_simple(RTM_GETNSID, 0));
  rtgenmsg request{.rtgen_family = AF_UNSPEC};
  if (!message || nlmsg_append(message.get(), &request, sizeof(request), NLMSG_ALIGNTO) < 0 ||
      nla_put_u32(message.get(), NETNSA_FD, static_cast<std::uint32_t>(netns.get())) < 0)
    return system_error("cannot ask for a namespace id", "RTM_GETNSID", ENOMEM);
  int nsid = -1;
  CHandle<nl_cb, nl_cb_put> callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, collect_nsid, &nsid);
  int err = nl_send_auto(socket(), message.get());
  if (err >= 0) err = nl_recvmsgs(socket(), callbacks.get());  // the reply
  if (err >= 0) err = nl_wait_for_ack(socket());
  if (err < 0) return netlink_error("cannot ask for a namespace id", "RTM_GETNSID", err);
  return nsid;
}

Status Netlink::set_up(int ifindex, bool up) const {
  const LinkHandle link(rtnl_link_alloc());
  const LinkHandle change(rtnl_link_alloc());
  rtnl_link_set_ifindex(link.get(), ifindex);
  if (up)
    rtnl_link_set_flags(change.get(), IFF_UP);
  else
    rtnl_link_unset_flags(change.get(), IFF_UP);
  const int err = rtnl_link_change(socket(), link.get(), change.get(), 0);
  if (err < 0)
    return netlink_error(up ? "cannot set link up" : "cannot set link down", "ifindex " + std::to_string(ifindex), err);
  return Ok{};
}

Status Netlink::set_mtu(int ifindex, unsigned mtu) const {
  const LinkHandle link(rtnl_link_alloc());
  const LinkHandle change(rtnl_link_alloc());
  rtnl_link_set_ifindex(link.get(), ifindex);
  rtnl_link_set_mtu(change.get(), mtu);
  if (const int err = rtnl_link_change(socket(), link.get(), change.get(), 0); err < 0)
    return netlink_error("cannot set the MTU to " + std::to_string(mtu), "ifindex " + std::to_string(ifindex), err);
  return Ok{};
}

Status Netlink::delete_link(int ifindex) const {
  const LinkHandle link(rtnl_link_alloc());
  rtnl_link_set_ifindex(link.get(), ifindex);
  const int err = rtnl_link_delete(socket(), link.get());
  if (err < 0 && err != -NLE_NODEV && err != -NLE_OBJ_NOTFOUND)
    return netlink_error("cannot delete link", "ifindex " + std::to_string(ifindex), err);
  return Ok{};
}

Status Netlink::add_address(int ifindex, const Ip& ip, AddressScope scope) const {
  const AddrHandle address = host_address(ifindex, ip);
  if (!address) return netlink_error("cannot add address", ip.str(), -NLE_NOMEM);
  if (scope == AddressScope::kHost) rtnl_addr_set_scope(address.get(), RT_SCOPE_HOST);
  if (!ip.is_v4()) {
    rtnl_addr_set_flags(address.get(), IFA_F_NODAD);
    // Deprecated: never chosen as a source (RFC 6724, rule 3), neither for the node's own packets nor by masquerade.
    // IPv4 has no such choice: there an address of the route's network comes first.
    rtnl_addr_set_valid_lifetime(address.get(), UINT32_MAX);
    rtnl_addr_set_preferred_lifetime(address.get(), 0);
  }
  const int err = rtnl_addr_add(socket(), address.get(), 0);
  if (err < 0 && err != -NLE_EXIST)
    return netlink_error(
        "cannot add address", ip.str(), err,
        err == -NLE_NOACCESS && !ip.is_v4() ? "is IPv6 switched off there (sysctl disable_ipv6)?" : "");
  return Ok{};
}

Status Netlink::delete_address(int ifindex, const Ip& ip) const {
  const AddrHandle address = host_address(ifindex, ip);
  const int err = rtnl_addr_delete(socket(), address.get(), 0);
  if (err < 0 && err != -NLE_NOADDR && err != -NLE_NODEV && err != -NLE_OBJ_NOTFOUND)
    return netlink_error("cannot delete address", ip.str(), err);
  return Ok{};
}

}  // namespace egressclass
