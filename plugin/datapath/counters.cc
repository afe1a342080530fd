// SPDX-License-Identifier: Apache-2.0
#include "datapath/counters.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <vector>

#include "datapath/bpf_map.h"

namespace egressclass {

const char* event_name(ec_event event) {
  switch (event) {
#define X(number, id, name) \
  case EC_##id:             \
    return name;
    EC_EVENTS(X)
#undef X
  }
  return "unknown";  // of a newer version
}

Result<Counters> read_counters() {
  const int cpus = libbpf_num_possible_cpus();
  if (cpus < 0) return system_error("cannot count the CPUs", "/sys/devices/system/cpu/possible", -cpus);
  auto map = BpfMap<ec_counter_key, ec_counter>::open("counters");
  if (!map) return map.error();
  auto keys = map->keys();
  if (!keys) return keys.error();

  Counters counters;
  std::vector<ec_counter> per_cpu(static_cast<std::size_t>(cpus));
  for (const ec_counter_key& key : *keys) {
    if (bpf_map_lookup_elem(map->fd(), &key, per_cpu.data()) != 0) continue;
    ec_counter& sum = counters[{key.class_id, static_cast<ec_event>(key.event)}];
    for (const ec_counter& one : per_cpu) {
      sum.packets += one.packets;
      sum.bytes += one.bytes;
    }
  }
  return counters;
}

Status erase_counters(std::uint32_t class_id) {
  auto map = BpfMap<ec_counter_key, ec_counter>::open("counters");
  if (!map) return map.error();
  auto keys = map->keys();
  if (!keys) return keys.error();
  for (const ec_counter_key& key : *keys)
    if (key.class_id == class_id)
      if (auto erased = map->erase(key); !erased) return erased;
  return Ok{};
}

}  // namespace egressclass
