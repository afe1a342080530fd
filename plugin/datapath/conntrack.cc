// SPDX-License-Identifier: Apache-2.0
#include "datapath/conntrack.h"

#include <endian.h>
#include <linux/filter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "datapath/netlink.h"

namespace egressclass {
namespace {

constexpr int kQueueBytes = 64 << 20;  // some 50 000 events
constexpr std::size_t kBatch = 64;
constexpr std::size_t kEventBytes = 4096;

template <int kMax>
using Attributes = std::array<nlattr*, kMax + 1>;

template <int kMax>
bool parse(nlattr* nested, Attributes<kMax>& attributes) {
  return nested != nullptr && nla_parse_nested(attributes.data(), kMax, nested, nullptr) >= 0;
}

/// Attributes of conntrack are in network byte order. 0: not there.
std::uint16_t u16_of(nlattr* attribute) { return attribute == nullptr ? 0 : ntohs(nla_get_u16(attribute)); }
std::uint32_t u32_of(nlattr* attribute) { return attribute == nullptr ? 0 : ntohl(nla_get_u32(attribute)); }
std::uint64_t u64_of(nlattr* attribute) { return attribute == nullptr ? 0 : be64toh(nla_get_u64(attribute)); }

Ip ip_of(nlattr* v4, nlattr* v6) {
  Ip ip;
  if (v4 != nullptr) return Ip::from_v4(nla_get_u32(v4));
  if (v6 != nullptr && nla_len(v6) == static_cast<int>(ip.bytes.size())) std::memcpy(ip.bytes.data(), nla_data(v6), 16);
  return ip;
}

struct Direction {
  Ip source;
  Ip destination;
  std::uint8_t protocol = 0;
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint16_t icmp_id = 0;
};

bool parse_direction(nlattr* tuple, Direction& d) {
  Attributes<CTA_TUPLE_MAX> parts{};
  Attributes<CTA_IP_MAX> ip{};
  Attributes<CTA_PROTO_MAX> proto{};
  if (!parse<CTA_TUPLE_MAX>(tuple, parts) || !parse<CTA_IP_MAX>(parts[CTA_TUPLE_IP], ip) ||
      !parse<CTA_PROTO_MAX>(parts[CTA_TUPLE_PROTO], proto) || proto[CTA_PROTO_NUM] == nullptr)
    return false;
  d.source = ip_of(ip[CTA_IP_V4_SRC], ip[CTA_IP_V6_SRC]);
  d.destination = ip_of(ip[CTA_IP_V4_DST], ip[CTA_IP_V6_DST]);
  d.protocol = nla_get_u8(proto[CTA_PROTO_NUM]);
  d.source_port = u16_of(proto[CTA_PROTO_SRC_PORT]);
  d.destination_port = u16_of(proto[CTA_PROTO_DST_PORT]);
  d.icmp_id = u16_of(proto[CTA_PROTO_ICMP_ID] != nullptr ? proto[CTA_PROTO_ICMP_ID] : proto[CTA_PROTO_ICMPV6_ID]);
  return true;
}

std::optional<TrackedCount> count_of(nlattr* counters) {
  Attributes<CTA_COUNTERS_MAX> parts{};
  if (!parse<CTA_COUNTERS_MAX>(counters, parts)) return {};
  return TrackedCount{u64_of(parts[CTA_COUNTERS_PACKETS]), u64_of(parts[CTA_COUNTERS_BYTES])};
}

std::uint8_t tcp_state_of(nlattr* info) {
  Attributes<CTA_PROTOINFO_MAX> parts{};
  Attributes<CTA_PROTOINFO_TCP_MAX> tcp{};
  if (!parse<CTA_PROTOINFO_MAX>(info, parts) || !parse<CTA_PROTOINFO_TCP_MAX>(parts[CTA_PROTOINFO_TCP], tcp)) return 0;
  return tcp[CTA_PROTOINFO_TCP_STATE] == nullptr ? 0 : nla_get_u8(tcp[CTA_PROTOINFO_TCP_STATE]);
}

std::optional<TrackedFlow> parse_flow(nlmsghdr* message) {
  Attributes<CTA_MAX> attributes{};
  if (nlmsg_parse(message, sizeof(nfgenmsg), attributes.data(), CTA_MAX, nullptr) < 0) return {};
  Direction original;
  Direction reply;
  if (!parse_direction(attributes[CTA_TUPLE_ORIG], original) || !parse_direction(attributes[CTA_TUPLE_REPLY], reply))
    return {};
  TrackedFlow flow;
  flow.id = u32_of(attributes[CTA_ID]);
  flow.mark = u32_of(attributes[CTA_MARK]);
  flow.protocol = original.protocol;
  flow.tcp_state = tcp_state_of(attributes[CTA_PROTOINFO]);
  flow.answered = (u32_of(attributes[CTA_STATUS]) & IPS_SEEN_REPLY) != 0;
  flow.source = original.source;
  flow.destination = original.destination;
  flow.egress = reply.destination;
  const bool icmp = original.protocol == IPPROTO_ICMP || original.protocol == IPPROTO_ICMPV6;
  flow.source_port = icmp ? original.icmp_id : original.source_port;
  flow.destination_port = original.destination_port;
  flow.egress_port = icmp ? reply.icmp_id : reply.destination_port;
  flow.out = count_of(attributes[CTA_COUNTERS_ORIG]);
  flow.in = count_of(attributes[CTA_COUNTERS_REPLY]);
  Attributes<CTA_TIMESTAMP_MAX> times{};
  if (parse<CTA_TIMESTAMP_MAX>(attributes[CTA_TIMESTAMP], times)) {
    flow.start_ns = static_cast<std::int64_t>(u64_of(times[CTA_TIMESTAMP_START]));
    flow.stop_ns = static_cast<std::int64_t>(u64_of(times[CTA_TIMESTAMP_STOP]));
  }
  return flow;
}

/// Lets pass what has an attribute CTA_MARK with a bit of `marks`.
Status filter_marks(int fd, std::uint32_t marks) {
  // A = offset of the attribute X among those that begin at A; 0: there is none (SKF_AD_NLATTR, linux/filter.h)
  std::array<sock_filter, 9> program = {{
      BPF_STMT(BPF_LD | BPF_IMM, sizeof(nlmsghdr) + sizeof(nfgenmsg)),
      BPF_STMT(BPF_LDX | BPF_IMM, CTA_MARK),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_NLATTR)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, 0),
      BPF_STMT(BPF_MISC | BPF_TAX, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_IND, NLA_HDRLEN),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, marks, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, 0),
      BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
  }};
  const sock_fprog attached{.len = program.size(), .filter = program.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &attached, sizeof(attached)) != 0)
    return system_error("cannot filter events", "conntrack", errno);
  return Ok{};
}

}  // namespace

Result<ConntrackEvents> ConntrackEvents::open(std::uint32_t marks) {
  Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER));
  if (!fd) return system_error("cannot open a socket", "conntrack", errno);
  if (auto filtered = filter_marks(fd.get(), marks); !filtered) return filtered.error();
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kQueueBytes, sizeof(kQueueBytes)) != 0)
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kQueueBytes, sizeof(kQueueBytes));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = 1U << (NFNLGRP_CONNTRACK_NEW - 1) | 1U << (NFNLGRP_CONNTRACK_DESTROY - 1);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)  // NOLINT
    return system_error("cannot listen to events", "conntrack", errno);
  return ConntrackEvents(std::move(fd));
}

Result<bool> ConntrackEvents::read(const Handler& handler, std::size_t max_events) const {
  std::array<std::array<char, kEventBytes>, kBatch> buffers;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  std::array<iovec, kBatch> vectors{};
  std::array<mmsghdr, kBatch> messages{};
  for (std::size_t i = 0; i < kBatch; ++i) {
    vectors[i] = {.iov_base = buffers[i].data(), .iov_len = kEventBytes};
    messages[i].msg_hdr.msg_iov = &vectors[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  for (std::size_t done = 0; done < max_events;) {
    const int got = ::recvmmsg(fd_.get(), messages.data(), kBatch, MSG_DONTWAIT, nullptr);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (got < 0 && (errno == EINTR || errno == ENOBUFS)) continue;  // ENOBUFS: lost() has the number
    if (got < 0) return system_error("cannot read events", "conntrack", errno);
    for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i) {
      auto* message = reinterpret_cast<nlmsghdr*>(buffers[i].data());  // NOLINT
      if (!nlmsg_ok(message, static_cast<int>(messages[i].msg_len))) continue;
      const unsigned type = message->nlmsg_type & 0xffU;
      if (auto flow = parse_flow(message)) handler(type == IPCTNL_MSG_CT_DELETE, *flow);
    }
    done += static_cast<std::size_t>(got);
  }
  return true;
}

std::uint64_t ConntrackEvents::lost() const {
  std::array<std::uint32_t, SK_MEMINFO_VARS> info{};
  socklen_t size = sizeof(info);
  if (::getsockopt(fd_.get(), SOL_SOCKET, SO_MEMINFO, info.data(), &size) != 0) return 0;
  return info[SK_MEMINFO_DROPS];
}

Status list_tracked(std::uint32_t marks, const std::function<void(const TrackedFlow& flow)>& handler) {
  const CHandle<nl_sock, nl_socket_free> socket(nl_socket_alloc());
  const CHandle<nl_msg, nlmsg_free> message(
      nlmsg_alloc_simple(NFNL_SUBSYS_CTNETLINK << 8U | IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP));
  nfgenmsg family{.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = 0};
  if (!socket || !message || nlmsg_append(message.get(), &family, sizeof(family), NLMSG_ALIGNTO) < 0)
    return system_error("cannot list flows", "conntrack", ENOMEM);
  struct Context {
    std::uint32_t marks;
    const std::function<void(const TrackedFlow&)>& handler;
  } context{marks, handler};
  const auto on_message = [](nl_msg* listed, void* argument) -> int {
    const auto& c = *static_cast<const Context*>(argument);
    if (const auto flow = parse_flow(nlmsg_hdr(listed)); flow && (flow->mark & c.marks) != 0) c.handler(*flow);
    return NL_OK;
  };
  nl_socket_modify_cb(socket.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, &context);
  int err = nl_connect(socket.get(), NETLINK_NETFILTER);
  if (err >= 0) err = nl_send_auto(socket.get(), message.get());
  if (err >= 0) err = nl_recvmsgs_default(socket.get());
  if (err < 0) return netlink_error("cannot list flows", "conntrack", err);
  return Ok{};
}

}  // namespace egressclass
