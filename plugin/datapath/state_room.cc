// SPDX-License-Identifier: Apache-2.0
#include "datapath/state_room.h"

#include <cstddef>
#include <utility>

#include "datapath/attachment_store.h"
#include "datapath/paths.h"
#include "util/spare_file.h"

namespace egressclass {

Status reserve_state(const Plan& plan, const NodeFacts& facts, const std::string& config) {
  constexpr std::size_t kIntegrity = 16U << 10U;  // a line for each chain, set and map: their number is fixed
  constexpr std::size_t kSysctls = 64U << 10U;    // of some hundred interfaces
  constexpr std::size_t kAddress = sizeof(R"("2001:db8:1111:2222:3333:4444:5555:6666":1234567890,)");
  const std::size_t classes = plan.applied.to_json().size();
  const std::size_t addresses = (facts.placed.size() + plan.applied.slots.size()) * kAddress;
  const std::pair<const char*, std::size_t> files[] = {{paths::kAppliedConfig, config.size()},
                                                       {paths::kAppliedClasses, classes},
                                                       {paths::kLastClasses, classes},
                                                       {paths::kIntegrity, kIntegrity},
                                                       {paths::kSystemChanges, kSysctls + addresses}};
  for (const auto& [path, bytes] : files)
    if (auto reserved = reserve_file(path, bytes); !reserved) return reserved;
  return reserve_record();
}

}  // namespace egressclass
