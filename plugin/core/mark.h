// SPDX-License-Identifier: Apache-2.0
// Packet marks: a small index (0: no class) whose bits are laid into the set bits of the mark mask,
// which need not be contiguous. The three highest values of a mask are not for classes.
#pragma once

#include <cstdint>

namespace egressclass {

inline constexpr std::uint32_t kReservedMarks = 3;

/// Lays the low bits of `index` into the set bits of `mask`, lowest first; what does not fit is dropped.
std::uint32_t deposit_bits(std::uint32_t index, std::uint32_t mask);
/// The inverse: gathers the bits of `mark` that are in `mask`.
std::uint32_t extract_bits(std::uint32_t mark, std::uint32_t mask);

std::uint32_t return_mark(std::uint32_t mask);
std::uint32_t reply_mark(std::uint32_t mask);
std::uint32_t probe_mark(std::uint32_t mask);

/// Classes have the indexes 1 to this one; 0 when the mask is too narrow for any class.
std::uint32_t max_class_index(std::uint32_t mask);

}  // namespace egressclass
