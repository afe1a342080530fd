// SPDX-License-Identifier: Apache-2.0
#include "datapath/route_lookup.h"

#include <linux/rtnetlink.h>
#include <netlink/msg.h>

#include <cerrno>

namespace egressclass {
namespace {

struct Answer {
  int error = 0;
  Route route;
};

int note_errno(sockaddr_nl*, nlmsgerr* answer, void* context) {
  static_cast<Answer*>(context)->error = -answer->error;
  return NL_STOP;
}

int note_route(nl_msg* message, void* context) {
  Route& route = static_cast<Answer*>(context)->route;
  nlmsghdr* header = nlmsg_hdr(message);
  if (const nlattr* oif = nlmsg_find_attr(header, sizeof(rtmsg), RTA_OIF))
    route.ifindex = static_cast<int>(nla_get_u32(oif));
  // What expires was learned from ICMP, and is not the route's.
  rta_cacheinfo cached{};
  if (const nlattr* info = nlmsg_find_attr(header, sizeof(rtmsg), RTA_CACHEINFO))
    nla_memcpy(&cached, info, sizeof(cached));
  const nlattr* metrics = nlmsg_find_attr(header, sizeof(rtmsg), RTA_METRICS);
  if (metrics == nullptr || cached.rta_expires != 0) return NL_OK;
  if (const nlattr* mtu = nla_find(static_cast<const nlattr*>(nla_data(metrics)), nla_len(metrics), RTAX_MTU))
    route.mtu = nla_get_u32(mtu);
  return NL_OK;
}

bool put_ip(nl_msg* message, int attribute, const Ip& ip) {
  const int bytes = ip.is_v4() ? 4 : 16;
  return nla_put(message, attribute, bytes, ip.bytes.data() + ip.bytes.size() - static_cast<std::size_t>(bytes)) == 0;
}

}  // namespace

Ip sample_of(const Prefix& prefix) {
  Ip ip = prefix.ip;
  if (prefix == Prefix{ip, ip.is_v4() ? 96U : 0U}) ip.bytes[ip.is_v4() ? 12 : 0] = ip.is_v4() ? 1 : 0x20;
  if (prefix.length < 128) ip.bytes[15] |= 1;
  return ip;
}

Result<RouteLookup> RouteLookup::open() {
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  // The answer is the route or the refusal; an acknowledgement besides would double the cost.
  nl_socket_disable_auto_ack(netlink->socket());
  return RouteLookup(std::move(*netlink));
}

Result<std::optional<Route>> RouteLookup::find(const Ip& source, const Ip& to, int came_by) const {
  return ask(&source, to, RTA_IIF, came_by);
}

Result<std::optional<Route>> RouteLookup::find_by(int ifindex, const Ip& to) const {
  return ask(nullptr, to, RTA_OIF, ifindex);
}

Result<std::optional<Route>> RouteLookup::ask(const Ip* source, const Ip& to, int attribute, int ifindex) const {
  const unsigned char bits = to.is_v4() ? 32 : 128;
  rtmsg request{};
  request.rtm_family = to.is_v4() ? AF_INET : AF_INET6;
  request.rtm_dst_len = bits;
  request.rtm_src_len = source != nullptr ? bits : 0;
  const CHandle<nl_msg, nlmsg_free> message(nlmsg_alloc_simple(RTM_GETROUTE, 0));
  if (!message || nlmsg_append(message.get(), &request, sizeof(request), NLMSG_ALIGNTO) < 0 ||
      (source != nullptr && !put_ip(message.get(), RTA_SRC, *source)) || !put_ip(message.get(), RTA_DST, to) ||
      (ifindex != 0 && nla_put_u32(message.get(), attribute, static_cast<std::uint32_t>(ifindex)) < 0))
    return system_error("cannot ask for a route", to.str(), ENOMEM);
  Answer answer;
  const CHandle<nl_cb, nl_cb_put> callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, note_route, &answer);
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, note_errno, &answer);
  int err = nl_send_auto(netlink_.socket(), message.get());
  if (err >= 0) err = nl_recvmsgs(netlink_.socket(), callbacks.get());
  const bool refused = answer.error == ENETUNREACH || answer.error == EHOSTUNREACH || answer.error == EACCES;
  if (refused) return std::optional<Route>();
  if (answer.error != 0) return system_error("cannot ask for a route", to.str(), answer.error);
  if (err < 0) return netlink_error("cannot ask for a route", to.str(), err);
  return std::optional<Route>(answer.route);
}

}  // namespace egressclass
