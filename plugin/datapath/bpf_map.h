// SPDX-License-Identifier: Apache-2.0
// A pinned BPF map with the types of its keys and values. Which map has which, is in maps.h.
#pragma once

#include <bpf/bpf.h>

#include <cerrno>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "datapath/paths.h"
#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

template <class Key, class Value>
class BpfMap {
 public:
  static Result<BpfMap> open(const std::string& name) {
    const std::string path = std::string(paths::kMapPins) + "/" + name;
    Fd fd(bpf_obj_get(path.c_str()));
    if (!fd) return system_error("cannot open BPF map", path, errno, "has `egressctl apply` run on this node?");
    // The kernel copies what the map's entries measure, not what ours do.
    bpf_map_info info{};
    __u32 size = sizeof(info);
    if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return system_error("cannot read BPF map", path, errno);
    if (info.key_size != sizeof(Key) || info.value_size != sizeof(Value))
      return make_error("a pinned BPF map is of another version", path + "; see `egressctl apply`");
    return BpfMap(name, std::move(fd));
  }

  Result<std::optional<Value>> find(const Key& key) const {
    Value value{};
    if (bpf_map_lookup_elem(fd_.get(), &key, &value) == 0) return std::optional<Value>(value);
    if (errno == ENOENT) return std::optional<Value>();
    return system_error("cannot read BPF map", name_, errno);
  }

  Status set(const Key& key, const Value& value) const {
    if (bpf_map_update_elem(fd_.get(), &key, &value, BPF_ANY) != 0)
      return system_error("cannot write BPF map", name_, errno,
                          errno == E2BIG || errno == ENOSPC ? "the map is full" : "");
    return Ok{};
  }

  /// Absent already is success.
  Status erase(const Key& key) const {
    if (bpf_map_delete_elem(fd_.get(), &key) != 0 && errno != ENOENT)
      return system_error("cannot delete from BPF map", name_, errno);
    return Ok{};
  }

  /// A snapshot as far as entries do not come and go meanwhile.
  Result<std::vector<Key>> keys() const {
    std::vector<Key> keys;
    Key key{};
    const Key* previous = nullptr;
    while (bpf_map_get_next_key(fd_.get(), previous, &key) == 0) {
      keys.push_back(key);
      previous = &keys.back();
    }
    if (errno != ENOENT) return system_error("cannot list BPF map", name_, errno);
    return keys;
  }

  /// The same, with the values.
  Result<std::vector<std::pair<Key, Value>>> entries() const {
    constexpr __u32 kBatch = 4096;
    std::vector<std::pair<Key, Value>> entries;
    std::vector<Key> keys(kBatch);
    std::vector<Value> values(kBatch);
    Cursor cursor{};
    for (bool first = true;; first = false) {
      __u32 count = kBatch;
      const int err = bpf_map_lookup_batch(fd_.get(), first ? nullptr : &cursor, &cursor, keys.data(), values.data(),
                                           &count, nullptr);
      if (err != 0 && errno != ENOENT) return system_error("cannot list BPF map", name_, errno);
      for (__u32 i = 0; i < count; ++i) entries.emplace_back(keys[i], values[i]);
      if (err != 0) return entries;  // ENOENT: these were the last
    }
  }

  int fd() const { return fd_.get(); }

 private:
  /// Where a batch ended: a hash's bucket, or a trie's key.
  union Cursor {
    __u32 bucket;
    Key key;
  };

  BpfMap(std::string name, Fd fd) : name_(std::move(name)), fd_(std::move(fd)) {}
  std::string name_;
  Fd fd_;
};

}  // namespace egressclass
