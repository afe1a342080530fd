// SPDX-License-Identifier: Apache-2.0
#include "datapath/flows.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "datapath/netlink.h"
#include "util/file.h"

namespace egressclass {

Status end_flows(std::uint32_t mark, std::uint32_t mask) {
  const CHandle<nl_sock, nl_socket_free> socket(nl_socket_alloc());
  const CHandle<nl_msg, nlmsg_free> message(
      nlmsg_alloc_simple(NFNL_SUBSYS_CTNETLINK << 8U | IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK));
  nfgenmsg family{.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = 0};
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

Result<std::uint64_t> flows_not_entered() {
  constexpr const char* kPath =
      "/proc/thread-self/net/stat/nf_conntrack";  // a line of names, then one of each CPU, in hexadecimal
  constexpr std::size_t kMaxBytes = 1U << 20U;
  auto text = read_file(kPath, kMaxBytes);
  if (!text) return text.error();
  std::istringstream lines(text->value_or(""));
  std::string line;
  std::getline(lines, line);
  std::istringstream header(line);
  const std::vector<std::string> names{std::istream_iterator<std::string>(header), {}};
  const auto column = std::ranges::find(names, "insert_failed") - names.begin();
  std::uint64_t sum = 0;
  while (std::getline(lines, line)) {
    std::istringstream cells(line);
    const std::vector<std::string> values{std::istream_iterator<std::string>(cells), {}};
    if (static_cast<std::size_t>(column) >= values.size()) return make_error("unexpected content", kPath);
    sum += std::strtoull(values[static_cast<std::size_t>(column)].c_str(), nullptr, 16);
  }
  return sum;
}

}  // namespace egressclass
