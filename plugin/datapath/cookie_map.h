// SPDX-License-Identifier: Apache-2.0
// The maps `attachments` and `endpoints` of whatever layout: the cookie is the first field of their values, and the
// keys are the same (bpf/egressclass.h). So DEL works on what another version has left.
#pragma once

#include <bpf/bpf.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../bpf/egressclass.h"
#include "datapath/paths.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

template <class Key>
class CookieMap {
 public:
  static Result<CookieMap> open(const std::string& name) {
    const std::string path = std::string(paths::kMapPins) + "/" + name;
    Fd fd(bpf_obj_get(path.c_str()));
    if (!fd) return system_error("cannot open BPF map", path, errno);
    bpf_map_info info{};
    __u32 size = sizeof(info);
    if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return system_error("cannot read BPF map", path, errno);
    if (info.key_size != sizeof(Key) || info.value_size < sizeof(std::uint64_t))
      return make_error("a pinned BPF map is none of ours", path);
    return CookieMap(name, std::move(fd), info.value_size);
  }

  /// No value: there is no such entry.
  Result<std::optional<std::uint64_t>> find(const Key& key) const {
    std::vector<char> value(value_size_);
    if (bpf_map_lookup_elem(fd_.get(), &key, value.data()) != 0) {
      if (errno == ENOENT) return std::optional<std::uint64_t>();
      return system_error("cannot read BPF map", name_, errno);
    }
    std::uint64_t cookie = 0;
    std::memcpy(&cookie, value.data(), sizeof(cookie));
    return std::optional<std::uint64_t>(cookie);
  }

  /// Absent already is success.
  Status erase(const Key& key) const {
    if (bpf_map_delete_elem(fd_.get(), &key) != 0 && errno != ENOENT)
      return system_error("cannot delete from BPF map", name_, errno);
    return Ok{};
  }

  /// Of the entries with that cookie.
  Result<std::vector<Key>> keys_with(std::uint64_t cookie) const {
    std::vector<Key> found;
    Key key{};
    const Key* previous = nullptr;
    Key last{};
    while (bpf_map_get_next_key(fd_.get(), previous, &key) == 0) {
      if (auto entry = find(key); entry && *entry == cookie) found.push_back(key);
      last = key;
      previous = &last;
    }
    if (errno != ENOENT) return system_error("cannot list BPF map", name_, errno);
    return found;
  }

 private:
  CookieMap(std::string name, Fd fd, std::size_t value_size)
      : name_(std::move(name)), fd_(std::move(fd)), value_size_(value_size) {}
  std::string name_;
  Fd fd_;
  std::size_t value_size_;
};

inline auto open_attachment_cookies() { return CookieMap<std::uint32_t>::open("attachments"); }
inline auto open_endpoint_cookies() { return CookieMap<ec_ip>::open("endpoints"); }

}  // namespace egressclass
