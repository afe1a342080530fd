// SPDX-License-Identifier: Apache-2.0
#include "core/mark.h"

#include <gtest/gtest.h>

#include <vector>

namespace egressclass {
namespace {

TEST(Mark, LaysTheIndexIntoTheSetBitsOfTheMask) {
  struct Case {
    std::uint32_t index, mask, mark;
  };
  for (const auto& [index, mask, mark] : std::vector<Case>{{0x7f, 0x1f7f, 0x7f},
                                                           {0x80, 0x1f7f, 0x100},
                                                           {0xfff, 0x1f7f, 0x1f7f},
                                                           {1, 0x80000000, 0x80000000},
                                                           {0xdeadbeef, 0xffffffff, 0xdeadbeef},
                                                           {5, 0xf0f0, 0x50}}) {
    EXPECT_EQ(deposit_bits(index, mask), mark);
    EXPECT_EQ(extract_bits(mark, mask), index);
  }
}

TEST(Mark, DropsWhatDoesNotFit) {
  EXPECT_EQ(deposit_bits(0xffffffff, 0x70), 0x70U);
  EXPECT_EQ(extract_bits(0xffffffff, 0x70), 7U);
}

TEST(Mark, TheHighestBitIsPending) {
  EXPECT_EQ(pending_mark(0x1f7f), 0x1000U);
  EXPECT_EQ(pending_mark(0xf0000000), 0x80000000U);
  EXPECT_EQ(pending_mark(0), 0U);
}

TEST(Mark, ReservesTheFourHighestValuesOfTheRest) {
  for (const std::uint32_t mask : {0x1f7fU, 0xfU, 0xf0000000U, 0xffffffffU}) {
    const std::uint32_t last = max_class_index(mask);
    EXPECT_EQ(extract_bits(bypass_mark(mask), mask), last + 1);
    EXPECT_EQ(extract_bits(probe_mark(mask) & ~pending_mark(mask), mask), last + 2);
    EXPECT_EQ(extract_bits(reply_mark(mask) & ~pending_mark(mask), mask), last + 3);
    EXPECT_EQ(extract_bits(return_mark(mask), mask), last + kReservedMarks);
    EXPECT_EQ(deposit_bits(last, mask) & pending_mark(mask), 0U);
  }
}

TEST(Mark, OnlyWhatNftHasSeenIsNotPending) {
  EXPECT_EQ(return_mark(0x1f7f) & pending_mark(0x1f7f), 0U);
  EXPECT_NE(reply_mark(0x1f7f) & pending_mark(0x1f7f), 0U);
  EXPECT_NE(probe_mark(0x1f7f) & pending_mark(0x1f7f), 0U);
}

TEST(Mark, CountsTheClassesThatAMaskHasRoomFor) {
  EXPECT_EQ(max_class_index(0x1f7f), 2043U);
  EXPECT_EQ(max_class_index(0xffffffff), 0x7ffffffbU);
  EXPECT_EQ(max_class_index(0xf), 3U);
  EXPECT_EQ(max_class_index(0x7), 0U);
  EXPECT_EQ(max_class_index(0), 0U);
}

}  // namespace
}  // namespace egressclass
