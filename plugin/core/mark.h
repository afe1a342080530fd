// SPDX-License-Identifier: Apache-2.0
// Packet marks: a small index (0: no class) whose bits are laid into the set bits of the mark mask,
// which need not be contiguous. The highest bit, and the four highest values of the rest, are not for classes.
#pragma once

#include <cstdint>

namespace egressclass {

inline constexpr std::uint32_t kReservedMarks = 4;

/// Lays the low bits of `index` into the set bits of `mask`, lowest first; what does not fit is dropped.
std::uint32_t deposit_bits(std::uint32_t index, std::uint32_t mask);
/// The inverse: gathers the bits of `mark` that are in `mask`.
std::uint32_t extract_bits(std::uint32_t mark, std::uint32_t mask);

/// The highest bit of the mask: set by the BPF programs, cleared by the nft table. A rule leads whatever still has it
/// to egress0, where it is dropped and counted: nothing leaves that nft has not seen, should its table be flushed.
std::uint32_t pending_mark(std::uint32_t mask);

/// The highest value without that bit. No packet has it: those that are not for classes are counted down from there.
std::uint32_t return_mark(std::uint32_t mask);
/// A pod's answer to an inbound flow, to be verified by nft. Pending.
std::uint32_t reply_mark(std::uint32_t mask);
/// A probe, or the answer to one; only the BPF programs see it. Pending.
std::uint32_t probe_mark(std::uint32_t mask);
/// What a pod with a class sends to the cluster. A service of the cluster may have its endpoint outside.
std::uint32_t bypass_mark(std::uint32_t mask);

/// Classes have the indexes 1 to this one; 0 when the mask is too narrow for any class.
std::uint32_t max_class_index(std::uint32_t mask);

}  // namespace egressclass
