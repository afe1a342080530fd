// SPDX-License-Identifier: Apache-2.0
#include "datapath/state_room.h"

#include <cstddef>
#include <utility>

#include "datapath/attachment_store.h"
#include "datapath/paths.h"
#include "util/spare_file.h"

namespace egressclass {

Status reserve_state(const Plan& plan, const std::string& config) {
  constexpr std::size_t kIntegrity = 16U << 10U;  // a line for each chain, set and map: their number is fixed
  constexpr std::size_t kPrograms = 16U << 10U;   // a line for each map and program, likewise
  constexpr std::size_t kSysctls = 64U << 10U;    // of some hundred interfaces
  const std::size_t classes = plan.applied.to_json().size();
  const std::pair<const char*, std::size_t> files[] = {
      {paths::kAppliedConfig, config.size()}, {paths::kAppliedClasses, classes}, {paths::kLastClasses, classes},
      {paths::kIntegrity, kIntegrity},        {paths::kPrograms, kPrograms},     {paths::kSystemChanges, kSysctls}};
  for (const auto& [path, bytes] : files)
    if (auto reserved = reserve_file(path, bytes); !reserved) return reserved;
  return reserve_record();
}

}  // namespace egressclass
