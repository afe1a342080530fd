// SPDX-License-Identifier: Apache-2.0
#include "datapath/flows.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <cerrno>

#include "datapath/netlink.h"

namespace egressclass {

Status end_flows(std::uint32_t mark, std::uint32_t mask) {
  const CHandle<nl_sock, nl_socket_free> socket(nl_socket_alloc());
  const CHandle<nl_msg, nlmsg_free> message(
      nlmsg_alloc_simple(NFNL_SUBSYS_CTNETLINK << 8U | IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK));
  nfgenmsg family{.nfgen_family = AF_INET, .version = NFNETLINK_V0, .res_id = 0};
  if (!socket || !message || nlmsg_append(message.get(), &family, sizeof(family), NLMSG_ALIGNTO) < 0 ||
      nla_put_u32(message.get(), CTA_MARK, htonl(mark)) < 0 ||
      nla_put_u32(message.get(), CTA_MARK_MASK, htonl(mask)) < 0)
    return system_error("cannot end flows", "conntrack", ENOMEM);
  int err = nl_connect(socket.get(), NETLINK_NETFILTER);
  if (err >= 0) err = nl_send_auto(socket.get(), message.get());
  if (err >= 0) err = nl_wait_for_ack(socket.get());
  if (err < 0) return netlink_error("cannot end flows", "conntrack", err);
  return Ok{};
}

}  // namespace egressclass
