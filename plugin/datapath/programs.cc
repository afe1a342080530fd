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
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/bpf_link.h"
#include "datapath/bpf_object.h"
#include "datapath/device_program.h"
#include "datapath/expedite.h"
#include "datapath/link_pins.h"
#include "datapath/load_failure.h"
#include "datapath/maps.h"
#include "util/c_handle.h"
#include "util/file.h"
#include "util/spare_file.h"

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

/// The kernel's hash of a program's code does not cover the maps that it holds. `pinned`: ids of maps; each program has
/// further ones, of constants.
bool same_program(int a, int b, const std::set<std::uint32_t>& pinned) {
  bpf_prog_info first{};
  bpf_prog_info second{};
  __u32 first_size = sizeof(first);
  __u32 second_size = sizeof(second);
  auto first_maps = maps_of_program(a);
  auto second_maps = maps_of_program(b);
  if (!first_maps || !second_maps || bpf_obj_get_info_by_fd(a, &first, &first_size) != 0 ||
      bpf_obj_get_info_by_fd(b, &second, &second_size) != 0)
    return false;
  for (auto* maps : {&*first_maps, &*second_maps})
    std::erase_if(*maps, [&](std::uint32_t id) { return !pinned.contains(id); });
  return std::equal(std::begin(first.tag), std::end(first.tag), std::begin(second.tag)) && *first_maps == *second_maps;
}

/// The pinned program is replaced by `program`, unless the two are the same.
Status pin_program(const bpf_program* program, const std::set<std::uint32_t>& maps) {
  const std::string pin = std::string(paths::kProgramPins) + "/" + bpf_program__name(program);
  const Fd pinned(bpf_obj_get(pin.c_str()));
  if (pinned && same_program(pinned.get(), bpf_program__fd(program), maps)) return Ok{};
  if (pinned && ::unlink(pin.c_str()) != 0) return system_error("cannot replace the pin", pin, errno);
  if (bpf_obj_pin(bpf_program__fd(program), pin.c_str()) != 0) return system_error("cannot pin program", pin, errno);
  return Ok{};
}

std::uint32_t pinned_program_id(const std::string& pin) {
  const Fd fd(bpf_obj_get(pin.c_str()));
  auto id = program_id(fd.get());
  return id ? *id : 0;
}

/// Paths in a folder of pins.
std::vector<std::string> pins_in(const char* folder) {
  std::vector<std::string> pins;
  for (const std::string& name : names_in(folder)) pins.push_back(std::string(folder) + "/" + name);
  return pins;
}

/// Which build is this.
std::string build_line() {
  std::size_t size = 0;
  const void* object = egressclass_bpf__elf_bytes(&size);
  return std::to_string(std::hash<std::string_view>()({static_cast<const char*>(object), size})) + "\n";
}

/// The kernel's numbers of all that is pinned.
std::string describe_pinned() {
  std::string text;
  for (const std::string& pin : pins_in(paths::kMapPins)) {
    auto id = pinned_map_id(pin);
    text += pin + " " + std::to_string(id ? *id : 0) + "\n";
  }
  for (const std::string& pin : pins_in(paths::kProgramPins))
    text += pin + " " + std::to_string(pinned_program_id(pin)) + "\n";
  return text;
}

std::string noted_at_loading() {
  constexpr std::size_t kMaxBytes = 64U << 10U;
  auto noted = read_file(paths::kPrograms, kMaxBytes);
  return noted ? noted->value_or("") : "";
}

/// Verifying programs takes most of the time that an apply of a small change has, so it is done when there is a reason.
bool is_pinned_already() { return noted_at_loading() == build_line() + describe_pinned(); }

Status load_and_pin() {
  std::error_code ec;
  std::filesystem::remove(paths::kPrograms, ec);
  auto skeleton = load();
  if (!skeleton) return skeleton.error();
  std::set<std::uint32_t> maps;
  for (const std::string& pin : pins_in(paths::kMapPins)) {
    auto id = pinned_map_id(pin);
    if (!id) return id.error();
    maps.insert(*id);
  }
  const auto& progs = (*skeleton)->progs;
  for (const bpf_program* program : {progs.classify, progs.classify_again, progs.tunnel_in, progs.tunnel_out,
                                     progs.nexthop_in, progs.uplink_in, progs.gateway_in, progs.gateway_out})
    if (auto pinned = pin_program(program, maps); !pinned) return pinned;
  return write_reserved(paths::kPrograms, build_line() + describe_pinned(), 0600);
}

Result<Fd> open_program(const std::string& name) {
  const std::string pin = std::string(paths::kProgramPins) + "/" + name;
  Fd program(bpf_obj_get(pin.c_str()));
  if (!program) return system_error("cannot open the pinned program", pin, errno);
  return program;
}

/// By the pins, since records can be lost.
Status replace_in_pods(const Programs& programs) {
  const auto classifier = program_id(programs.classify.get());
  if (!classifier) return classifier.error();
  for (const int ifindex : classifier_pins()) {
    const std::string pin = classifier_pin(ifindex);
    auto link = read_link(pin);
    if (!link) return link.error();
    if (!*link || (*link)->ifindex != ifindex) continue;  // its veth is gone; DEL will follow
    if ((*link)->program_id != *classifier)
      if (auto done = attach_link(programs.classify.get(), ifindex, Hook::kIngress, pin); !done) return done;
    if (auto held = hold_program(programs.classify_again.get(), ifindex, *classifier); !held) return held;
  }
  return Ok{};
}

}  // namespace

bool pins_are_intact() {
  const std::string noted = noted_at_loading();
  return !noted.empty() && noted.substr(noted.find('\n') + 1) == describe_pinned();
}

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

Result<Programs> install_programs() {
  if (auto made = make_pin_folders(); !made) return made.error();
  if (auto same = refuse_other_layout(); !same) return same.error();
  if (!is_pinned_already())
    if (auto pinned = load_and_pin(); !pinned) return pinned.error();
  Programs programs;
  for (const auto& [name, program] :
       {std::pair("classify", &programs.classify), std::pair("classify_again", &programs.classify_again),
        std::pair("tunnel_in", &programs.tunnel_in), std::pair("tunnel_out", &programs.tunnel_out),
        std::pair("nexthop_in", &programs.nexthop_in), std::pair("uplink_in", &programs.uplink_in),
        std::pair("gateway_in", &programs.gateway_in), std::pair("gateway_out", &programs.gateway_out)}) {
    auto opened = open_program(name);
    if (!opened) return opened.error();
    *program = std::move(*opened);
  }
  const Expedite expedite;
  if (auto replaced = replace_in_pods(programs); !replaced) return replaced.error();
  return programs;
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
