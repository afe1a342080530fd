// SPDX-License-Identifier: Apache-2.0
#include "datapath/bpf_object.h"

#include <bpf/bpf.h>

#include <array>
#include <cerrno>

#include "util/fd.h"

namespace egressclass {
namespace {

/// BPF_OBJ_GET_INFO_BY_FD.
template <class Info>
Status read_info(int fd, Info& info, const std::string& object) {
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd, &info, &size) != 0) return system_error("cannot read BPF object", object, errno);
  return Ok{};
}

std::string name_of(int fd) { return "fd " + std::to_string(fd); }

}  // namespace

Result<std::uint32_t> program_id(int program_fd) {
  bpf_prog_info info{};
  if (auto read = read_info(program_fd, info, name_of(program_fd)); !read) return read.error();
  return info.id;
}

Result<std::set<std::uint32_t>> maps_of_program(int program_fd) {
  std::array<std::uint32_t, 64> ids{};  // MAX_USED_MAPS
  bpf_prog_info info{};
  info.nr_map_ids = ids.size();
  info.map_ids = reinterpret_cast<std::uintptr_t>(ids.data());  // NOLINT(cppcoreguidelines-pro-type-reinterpret-cast)
  if (auto read = read_info(program_fd, info, name_of(program_fd)); !read) return read.error();
  return std::set<std::uint32_t>(ids.begin(), ids.begin() + info.nr_map_ids);
}

Result<std::uint32_t> pinned_map_id(const std::string& pin) {
  const Fd map(bpf_obj_get(pin.c_str()));
  if (!map) return system_error("cannot open BPF map", pin, errno, "run `egressctl apply`");
  bpf_map_info info{};
  if (auto read = read_info(map.get(), info, pin); !read) return read.error();
  return info.id;
}

}  // namespace egressclass
