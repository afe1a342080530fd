// SPDX-License-Identifier: Apache-2.0
#include "datapath/bpf_link.h"

#include <bpf/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "datapath/bpf_object.h"

namespace egressclass {
namespace {

// Newer than Debian 12's headers: linux/bpf.h of 6.6.
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr auto kTcxEgress = static_cast<bpf_attach_type>(47);
constexpr std::uint32_t kBefore = 1U << 3U;  // BPF_F_BEFORE, with no relative: before all

}  // namespace

Result<std::optional<LinkState>> read_link(const std::string& pin) {
  const Fd fd(bpf_obj_get(pin.c_str()));
  if (!fd && errno == ENOENT) return std::optional<LinkState>();
  if (!fd) return system_error("cannot open BPF link", pin, errno);
  bpf_link_info info{};
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return system_error("cannot read BPF link", pin, errno);
  // info.tcx is newer than the headers too; like info.xdp it begins with the ifindex.
  return std::optional<LinkState>(LinkState{static_cast<int>(info.xdp.ifindex), info.prog_id});
}

Status attach_link(int program_fd, int ifindex, Hook hook, const std::string& pin) {
  auto existing = read_link(pin);
  if (!existing) return existing.error();
  if (*existing && (*existing)->ifindex == ifindex) {
    auto id = program_id(program_fd);
    if (!id) return id.error();
    if ((*existing)->program_id == *id) return Ok{};
    const Fd link(bpf_obj_get(pin.c_str()));
    if (!link || bpf_link_update(link.get(), program_fd, nullptr) != 0)
      return system_error("cannot replace the program of BPF link", pin, errno);
    return Ok{};
  }
  if (auto removed = remove_link(pin); !removed) return removed.error();

  LIBBPF_OPTS(bpf_link_create_opts, options, .flags = kBefore);
  const auto type = hook == Hook::kIngress ? kTcxIngress : kTcxEgress;
  Fd link(bpf_link_create(program_fd, ifindex, type, &options));
  // A program can be on a hook only once, and the kernel takes it off some time after the last pin of its link is gone.
  for (int tries = 0; !link && errno == EEXIST && tries < 400; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    link = Fd(bpf_link_create(program_fd, ifindex, type, &options));
  }
  if (!link)
    return system_error("cannot attach the BPF program", "ifindex " + std::to_string(ifindex), errno,
                        errno == EINVAL ? "TCX links need kernel 6.6 or newer" : "");
  if (bpf_obj_pin(link.get(), pin.c_str()) != 0) return system_error("cannot pin BPF link", pin, errno);
  return Ok{};
}

Status remove_link(const std::string& pin) {
  // Of a link that loses its last handle the kernel takes the program off some time later.
  if (const Fd link(bpf_obj_get(pin.c_str())); link) bpf_link_detach(link.get());
  if (::unlink(pin.c_str()) != 0 && errno != ENOENT) return system_error("cannot remove the pin", pin, errno);
  return Ok{};
}

}  // namespace egressclass
