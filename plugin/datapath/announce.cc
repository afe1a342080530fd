// SPDX-License-Identifier: Apache-2.0
#include "datapath/announce.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <utility>

#include "datapath/egress_ips.h"
#include "datapath/neighbour_messages.h"
#include "datapath/netlink.h"
#include "util/all_errors.h"
#include "util/fd.h"

namespace egressclass {
namespace {

Status announce(const Netlink& netlink, const std::map<Ip, int>& ifindex_of) {
  if (ifindex_of.empty()) return Ok{};
  const auto messages = NeighbourMessages::open();  // one for all: closing a packet socket waits for every CPU
  if (!messages) return messages.error();
  std::map<int, std::optional<Link>> links;
  AllErrors errors;
  for (const auto& [ip, ifindex] : ifindex_of) {
    if (!links.contains(ifindex)) {
      auto link = netlink.link(ifindex);
      errors.add(link);
      links[ifindex] = link ? std::move(*link) : std::nullopt;
    }
    const std::optional<Link>& link = links[ifindex];
    if (link && link->up && link->mac != Mac{}) errors.add(messages->tell(*link, ip));
  }
  return errors.status();
}

/// The life of the process that repeats.
void repeat(std::map<Ip, int> ifindex_of) {
  for (const int seconds : {1, 2}) {
    ::sleep(static_cast<unsigned>(seconds));
    const auto held = held_egress_ips();
    std::erase_if(ifindex_of, [&](const auto& one) {
      const auto still = held.find(one.first);
      return still == held.end() || still->second != one.second;
    });
    auto netlink = Netlink::open();
    if (!netlink || !announce(*netlink, ifindex_of)) return;
  }
}

}  // namespace

Status announce_egress_ips(const Plan& plan) {
  const auto ifindex_of = egress_ips_of(plan);
  if (ifindex_of.empty()) return Ok{};
  auto netlink = Netlink::open();
  return netlink ? announce(*netlink, ifindex_of) : Status(netlink.error());
}

void announce_again(const Plan& plan) {
  const auto ifindex_of = egress_ips_of(plan);
  if (ifindex_of.empty() || ::fork() != 0) return;
  // Nobody waits for this process: not for its output, and not for the lock, which goes with the descriptor.
  ::setsid();
  const Fd nowhere(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(nowhere.get(), fd);
  ::close_range(STDERR_FILENO + 1, ~0U, 0);
  repeat(ifindex_of);
  ::_exit(0);
}

}  // namespace egressclass
