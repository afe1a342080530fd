// SPDX-License-Identifier: Apache-2.0
#include "datapath/programs.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <string_view>

#include "datapath/bpf_link.h"
#include "datapath/load_failure.h"
#include "datapath/maps.h"
#include "util/c_handle.h"
#include "util/file.h"

// Generated; needs the libbpf headers above it.
#include "egressclass.skel.h"

namespace egressclass {
namespace {

using Skeleton = CHandle<egressclass_bpf, egressclass_bpf__destroy>;

// libbpf prints why the kernel refused; kept for the error's details.
std::string libbpf_said;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

__attribute__((format(printf, 2, 0))) int remember(libbpf_print_level level, const char* format, va_list arguments) {
  if (level != LIBBPF_WARN) return 0;
  std::array<char, 1024> text{};
  const int length = std::vsnprintf(text.data(), text.size(), format, arguments);
  libbpf_said += text.data();
  constexpr std::size_t kKeep = 2000;
  if (libbpf_said.size() > kKeep) libbpf_said.erase(0, libbpf_said.size() - kKeep);
  return length;
}

Status make_pin_folders() {
  struct statfs fs {};
  if (::statfs(paths::kBpffs, &fs) != 0 || fs.f_type != BPF_FS_MAGIC)
    return make_error("no BPF file system", std::string(paths::kBpffs) + " is none; mount -t bpf bpf " + paths::kBpffs);
  std::error_code ec;
  for (const char* folder : {paths::kMapPins, paths::kProgramPins, paths::kLinkPins})
    if (std::filesystem::create_directories(folder, ec); ec)
      return system_error("cannot make the folder for pins", folder, ec.value());
  return Ok{};
}

Result<Skeleton> load() {
  libbpf_set_print(remember);
  libbpf_said.clear();
  Skeleton skeleton(egressclass_bpf__open());
  if (!skeleton) return system_error("cannot open the BPF object", "egressclass.bpf.o", errno, libbpf_said);
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    if (bpf_map__is_internal(map)) continue;
    const std::string pin = std::string(paths::kMapPins) + "/" + bpf_map__name(map);
    if (const int err = bpf_map__set_pin_path(map, pin.c_str()); err != 0)
      return system_error("cannot set the pin of map", pin, -err);
  }
  if (const int err = egressclass_bpf__load(skeleton.get()); err != 0)
    return system_error("the kernel refused the BPF programs", "egressclass.bpf.o", -err,
                        load_failure_hint(libbpf_said));
  return skeleton;
}

bool same_program(int a, int b) {
  bpf_prog_info first{};
  bpf_prog_info second{};
  __u32 first_size = sizeof(first);
  __u32 second_size = sizeof(second);
  return bpf_obj_get_info_by_fd(a, &first, &first_size) == 0 && bpf_obj_get_info_by_fd(b, &second, &second_size) == 0 &&
         std::equal(std::begin(first.tag), std::end(first.tag), std::begin(second.tag));
}

/// The pinned program is replaced by `program`, unless the two are the same.
Status pin_program(const bpf_program* program) {
  const std::string pin = std::string(paths::kProgramPins) + "/" + bpf_program__name(program);
  const Fd pinned(bpf_obj_get(pin.c_str()));
  if (pinned && same_program(pinned.get(), bpf_program__fd(program))) return Ok{};
  if (pinned && ::unlink(pin.c_str()) != 0) return system_error("cannot replace the pin", pin, errno);
  if (bpf_obj_pin(bpf_program__fd(program), pin.c_str()) != 0) return system_error("cannot pin program", pin, errno);
  return Ok{};
}

template <class Info>
std::uint32_t id_of(const std::string& pin, std::uint32_t Info::*id) {
  const Fd fd(bpf_obj_get(pin.c_str()));
  Info info{};
  __u32 size = sizeof(info);
  return fd && bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 ? info.*id : 0;
}

/// Which build was loaded, and the kernel's numbers of all that is pinned.
std::string describe_pinned() {
  std::size_t size = 0;
  const void* object = egressclass_bpf__elf_bytes(&size);
  const auto build = std::hash<std::string_view>()({static_cast<const char*>(object), size});
  std::set<std::string> lines;
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(paths::kMapPins, ec))
    lines.insert(entry.path().string() + " " + std::to_string(id_of(entry.path(), &bpf_map_info::id)));
  for (const auto& entry : std::filesystem::directory_iterator(paths::kProgramPins, ec))
    lines.insert(entry.path().string() + " " + std::to_string(id_of(entry.path(), &bpf_prog_info::id)));
  std::string text = std::to_string(build) + "\n";
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

/// Verifying programs takes most of the time that an apply of a small change has, so it is done when there is a reason.
bool is_pinned_already() {
  constexpr std::size_t kMaxBytes = 64U << 10U;
  auto noted = read_file(paths::kPrograms, kMaxBytes);
  return noted && *noted && **noted == describe_pinned();
}

Status load_and_pin() {
  std::error_code ec;
  std::filesystem::remove(paths::kPrograms, ec);
  auto skeleton = load();
  if (!skeleton) return skeleton.error();
  const auto& progs = (*skeleton)->progs;
  for (const bpf_program* program : {progs.classify, progs.tunnel_in, progs.tunnel_out, progs.nexthop_in})
    if (auto pinned = pin_program(program); !pinned) return pinned;
  return write_file_atomic(paths::kPrograms, describe_pinned(), 0600);
}

Result<Fd> open_program(const std::string& name) {
  const std::string pin = std::string(paths::kProgramPins) + "/" + name;
  Fd program(bpf_obj_get(pin.c_str()));
  if (!program) return system_error("cannot open the pinned program", pin, errno);
  return program;
}

}  // namespace

Status refuse_other_layout() {
  const std::string path = std::string(paths::kMapPins) + "/node";
  const Fd fd(bpf_obj_get(path.c_str()));
  if (!fd) return Ok{};  // nothing is pinned
  bpf_map_info info{};
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return system_error("cannot read BPF map", path, errno);
  // The layout is the first field, of every version.
  std::vector<std::uint32_t> value(info.value_size / sizeof(std::uint32_t) + 1);
  const __u32 zero = 0;
  if (bpf_map_lookup_elem(fd.get(), &zero, value.data()) != 0) return system_error("cannot read BPF map", path, errno);
  const bool never_written = value[0] == 0 && info.value_size == sizeof(ec_node);
  if (never_written || (value[0] == EC_LAYOUT && info.value_size == sizeof(ec_node))) return Ok{};
  return make_error("the pinned maps are of another version",
                    path + ": layout " + std::to_string(value[0]) + ", this build has " + std::to_string(EC_LAYOUT) +
                        "; nothing was changed; run `egressctl down` of the version that pinned them");
}

Result<Programs> install_programs(const std::vector<Attachment>& attachments) {
  if (auto made = make_pin_folders(); !made) return made.error();
  if (auto same = refuse_other_layout(); !same) return same.error();
  if (!is_pinned_already())
    if (auto pinned = load_and_pin(); !pinned) return pinned.error();
  auto classify = open_program("classify");
  if (!classify) return classify.error();
  auto tunnel_in = open_program("tunnel_in");
  if (!tunnel_in) return tunnel_in.error();
  auto tunnel_out = open_program("tunnel_out");
  if (!tunnel_out) return tunnel_out.error();
  auto nexthop_in = open_program("nexthop_in");
  if (!nexthop_in) return nexthop_in.error();

  const auto classifier = program_id(classify->get());
  if (!classifier) return classifier.error();
  for (const Attachment& attachment : attachments) {
    const std::string pin = std::string(paths::kLinkPins) + "/" + std::to_string(attachment.host_ifindex);
    auto link = read_link(pin);
    if (!link) return link.error();
    if (!*link || (*link)->ifindex != attachment.host_ifindex) continue;  // its veth is gone; DEL will follow
    if ((*link)->program_id == *classifier) continue;
    if (auto done = attach_link(classify->get(), attachment.host_ifindex, Hook::kIngress, pin); !done)
      return done.error();
  }
  return Programs{std::move(*classify), std::move(*tunnel_in), std::move(*tunnel_out), std::move(*nexthop_in)};
}

Status remove_pins() {
  std::error_code ec;
  std::filesystem::remove(paths::kPrograms, ec);
  std::filesystem::remove_all(paths::kPins, ec);
  if (ec && ec != std::errc::no_such_file_or_directory)
    return system_error("cannot remove the pins", paths::kPins, ec.value());
  return Ok{};
}

}  // namespace egressclass
