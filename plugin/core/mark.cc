// SPDX-License-Identifier: Apache-2.0
#include "core/mark.h"

#include <bit>

namespace egressclass {

std::uint32_t deposit_bits(std::uint32_t index, std::uint32_t mask) {
  std::uint32_t mark = 0;
  for (; mask != 0; mask &= mask - 1, index >>= 1U)
    if ((index & 1U) != 0) mark |= mask & -mask;
  return mark;
}

std::uint32_t extract_bits(std::uint32_t mark, std::uint32_t mask) {
  std::uint32_t index = 0;
  for (std::uint32_t bit = 1; mask != 0; mask &= mask - 1, bit <<= 1U)
    if ((mark & mask & -mask) != 0) index |= bit;
  return index;
}

std::uint32_t pending_mark(std::uint32_t mask) { return mask == 0 ? 0 : std::bit_floor(mask); }

std::uint32_t return_mark(std::uint32_t mask) { return mask & ~pending_mark(mask); }

std::uint32_t reply_mark(std::uint32_t mask) {
  return pending_mark(mask) | deposit_bits(extract_bits(return_mark(mask), mask) - 1, mask);
}

std::uint32_t probe_mark(std::uint32_t mask) {
  return pending_mark(mask) | deposit_bits(extract_bits(return_mark(mask), mask) - 2, mask);
}

std::uint32_t bypass_mark(std::uint32_t mask) { return deposit_bits(extract_bits(return_mark(mask), mask) - 3, mask); }

std::uint32_t max_class_index(std::uint32_t mask) {
  const std::uint32_t highest = extract_bits(return_mark(mask), mask);
  return highest > kReservedMarks ? highest - kReservedMarks : 0;
}

}  // namespace egressclass
