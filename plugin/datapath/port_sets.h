// SPDX-License-Identifier: Apache-2.0
// Port rules in the map `ports`: a number for each set of them that occurs.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "core/ports.h"
#include "datapath/maps.h"
#include "util/result.h"

namespace egressclass {

/// The sets that are in the map, and those that are to come. A set never changes: what is not there yet gets a new
/// number, and write() is before any rule that refers to it.
class PortSets {
 public:
  static Result<PortSets> load();

  /// 0: no rules, which is everything. An error when the map has not enough room for the set.
  Result<std::uint32_t> number_of(const std::vector<PortRule>& rules);
  /// The sets that number_of() was asked for and that are not in the map.
  Status write();
  /// Deletes all sets but `used`.
  Status remove_unused(const std::set<std::uint32_t>& used) const;

 private:
  struct Entry {
    std::uint16_t protocol = 0;
    std::uint16_t port = 0;  ///< host byte order
    unsigned length = 0;     ///< of the port, in bits
    auto operator<=>(const Entry&) const = default;
  };
  using Set = std::set<Entry>;

  explicit PortSets(BpfMap<ec_port_key, __u32> map) : map_(std::move(map)) {}
  static Set entries_of(const std::vector<PortRule>& rules);
  static ec_port_key key_of(std::uint32_t number, const Entry& entry);

  BpfMap<ec_port_key, __u32> map_;
  std::map<Set, std::uint32_t> numbers_;
  std::map<std::uint32_t, Set> coming_;
  std::set<std::uint32_t> taken_;
  std::size_t entries_ = 0;
};

}  // namespace egressclass
