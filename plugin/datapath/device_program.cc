// SPDX-License-Identifier: Apache-2.0
#include "datapath/device_program.h"

#include <bpf/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "datapath/bpf_object.h"
#include "util/fd.h"

namespace egressclass {
namespace {

// Newer than Debian 12's headers: linux/bpf.h of 6.6.
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr std::uint32_t kReplace = 1U << 2U;
constexpr std::uint32_t kBefore = 1U << 3U;
constexpr std::uint32_t kAfter = 1U << 4U;
constexpr std::uint32_t kRelativeIsId = 1U << 5U;
constexpr std::uint32_t kMaxPrograms = 64;  // of a hook: BPF_MPROG_MAX

/// What BPF_PROG_ATTACH takes.
struct Attach {
  std::uint32_t ifindex = 0;
  std::uint32_t program_fd = 0;
  std::uint32_t type = kTcxIngress;
  std::uint32_t flags = 0;
  std::uint32_t replaced_fd = 0;
  std::uint32_t relative = 0;
  std::uint64_t revision = 0;
};

std::string on_interface(int ifindex) { return "ifindex " + std::to_string(ifindex); }

Result<std::vector<std::uint32_t>> programs_on(int ifindex) {
  std::array<std::uint32_t, kMaxPrograms> ids{};
  std::uint32_t count = ids.size();
  if (bpf_prog_query(ifindex, kTcxIngress, 0, nullptr, ids.data(), &count) != 0) {
    if (errno == ENOENT || errno == ENODEV) count = 0;  // nothing there, or no interface any more
    if (count != 0) return system_error("cannot list the BPF programs", on_interface(ifindex), errno);
  }
  return std::vector<std::uint32_t>(ids.begin(), ids.begin() + count);
}

Result<bpf_prog_info> info_of(int program_fd) {
  bpf_prog_info info{};
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(program_fd, &info, &size) != 0)
    return system_error("cannot read BPF program", "fd " + std::to_string(program_fd), errno);
  return info;
}

/// The one among `ids` that has that name. Empty: there is none.
Result<Fd> find_by_name(const std::vector<std::uint32_t>& ids, const char* name) {
  for (const std::uint32_t id : ids) {
    Fd program(bpf_prog_get_fd_by_id(id));
    if (!program && errno == ENOENT) continue;  // it has just gone
    if (!program)
      return system_error("cannot look at BPF program", "id " + std::to_string(id), errno,
                          errno == EPERM ? "needs CAP_SYS_ADMIN" : "");
    auto info = info_of(program.get());
    if (!info) return info.error();
    if (std::strcmp(info->name, name) == 0) return program;
  }
  return Fd();
}

Status attach(const Attach& attributes) {
  if (::syscall(SYS_bpf, BPF_PROG_ATTACH, &attributes, sizeof(attributes)) != 0 && errno != EEXIST)
    return system_error("cannot attach the BPF program", on_interface(static_cast<int>(attributes.ifindex)), errno);
  return Ok{};
}

Status detach(int program_fd, int ifindex) {
  if (bpf_prog_detach2(program_fd, ifindex, kTcxIngress) != 0 && errno != ENOENT && errno != ENODEV)
    return system_error("cannot detach the BPF program", on_interface(ifindex), errno);
  return Ok{};
}

}  // namespace

Status hold_program(int program_fd, int ifindex, std::uint32_t behind) {
  auto info = info_of(program_fd);
  if (!info) return info.error();
  auto present = programs_on(ifindex);
  if (!present) return present.error();
  if (std::ranges::find(*present, info->id) != present->end()) return Ok{};

  Attach attributes{.ifindex = static_cast<std::uint32_t>(ifindex), .program_fd = static_cast<__u32>(program_fd)};
  const bool has_leader = std::erase(*present, behind) != 0;
  auto old = find_by_name(*present, info->name);
  if (!old) return old.error();
  if (*old) {
    attributes.flags = kReplace;
    attributes.replaced_fd = static_cast<std::uint32_t>(old->get());
  } else if (has_leader) {
    attributes.flags = kAfter | kRelativeIsId;
    attributes.relative = behind;
  } else {
    attributes.flags = kBefore;  // with no relative: before all
  }
  return attach(attributes);
}

Result<bool> holds_program(std::uint32_t program_id, int ifindex) {
  auto present = programs_on(ifindex);
  if (!present) return present.error();
  return std::ranges::find(*present, program_id) != present->end();
}

Status release_program_named(const char* name, int ifindex) {
  auto present = programs_on(ifindex);
  if (!present) return present.error();
  auto found = find_by_name(*present, name);
  if (!found) return found.error();
  return *found ? detach(found->get(), ifindex) : Status(Ok{});
}

Status release_program(int program_fd, int ifindex) {
  auto info = info_of(program_fd);
  if (!info) return info.error();
  auto present = programs_on(ifindex);
  if (!present) return present.error();
  const bool is_this = std::ranges::find(*present, info->id) != present->end();
  auto found = is_this ? Result<Fd>(Fd()) : find_by_name(*present, info->name);
  if (!found) return found.error();
  if (!is_this && !*found) return Ok{};
  return detach(is_this ? program_fd : found->get(), ifindex);
}

}  // namespace egressclass
