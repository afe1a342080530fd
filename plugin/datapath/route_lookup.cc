// SPDX-License-Identifier: Apache-2.0
#include "datapath/route_lookup.h"

#include <linux/rtnetlink.h>
#include <netlink/msg.h>

#include <cerrno>

namespace egressclass {
namespace {

int note_errno(sockaddr_nl*, nlmsgerr* answer, void* context) {
  *static_cast<int*>(context) = -answer->error;
  return NL_STOP;
}

bool put_ip(nl_msg* message, int attribute, const Ip& ip) {
  const int bytes = ip.is_v4() ? 4 : 16;
  return nla_put(message, attribute, bytes, ip.bytes.data() + ip.bytes.size() - static_cast<std::size_t>(bytes)) == 0;
}

}  // namespace

Result<RouteLookup> RouteLookup::open() {
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  // The answer is the route or the refusal; an acknowledgement besides would double the cost.
  nl_socket_disable_auto_ack(netlink->socket());
  return RouteLookup(std::move(*netlink));
}

bool RouteLookup::has_route(const Ip& source, const Ip& to, std::uint32_t mark) const {
  const unsigned char bits = to.is_v4() ? 32 : 128;
  rtmsg request{};
  request.rtm_family = to.is_v4() ? AF_INET : AF_INET6;
  request.rtm_src_len = request.rtm_dst_len = bits;
  const CHandle<nl_msg, nlmsg_free> message(nlmsg_alloc_simple(RTM_GETROUTE, 0));
  if (!message || nlmsg_append(message.get(), &request, sizeof(request), NLMSG_ALIGNTO) < 0 ||
      !put_ip(message.get(), RTA_SRC, source) || !put_ip(message.get(), RTA_DST, to) ||
      nla_put_u32(message.get(), RTA_MARK, mark) < 0)
    return true;
  int refusal = 0;
  const CHandle<nl_cb, nl_cb_put> callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, note_errno, &refusal);
  if (nl_send_auto(netlink_.socket(), message.get()) < 0) return true;
  nl_recvmsgs(netlink_.socket(), callbacks.get());
  return refusal != ENETUNREACH && refusal != EHOSTUNREACH && refusal != EACCES;
}

}  // namespace egressclass
