#include "engine/pages/pending_pages.h"

#include <gtest/gtest.h>

namespace stasis::engine::pages {
namespace {

constexpr std::uint64_t kP = kPageBytes;

// The pages of the file that are pending from page 0 to 40, or -1 each.
std::vector<int> FilePages(const PendingPages& pending) {
  std::vector<int> pages;
  for (std::uint64_t page = 0; page < 40; ++page) {
    const auto run = pending.At(page * kP);
    pages.push_back(run ? static_cast<int>(run->offset / kP) : -1);
  }
  return pages;
}

TEST(PendingPagesTest, WhatIsRemovedLeavesItsNeighbours) {
  PendingPages pending;
  ASSERT_TRUE(pending.Add({.start = 10 * kP, .end = 14 * kP, .file = 3, .offset = 100 * kP}));
  ASSERT_TRUE(pending.Add({.start = 14 * kP, .end = 16 * kP, .file = 3, .offset = 200 * kP}));
  pending.Remove(11 * kP, 15 * kP);
  pending.Remove(0, 2 * kP);
  EXPECT_EQ(pending.bytes(), 2 * kP);
  EXPECT_EQ(pending.At(10 * kP)->offset, 100 * kP);
  EXPECT_FALSE(pending.At(11 * kP) || pending.At(14 * kP) || pending.At(16 * kP));
  EXPECT_EQ(pending.From(11 * kP)->start, 15 * kP);
  EXPECT_EQ(pending.At(15 * kP)->offset, 201 * kP);
  EXPECT_FALSE(pending.From(16 * kP));
}

TEST(PendingPagesTest, AMoveBringsHolesAlongAndReplacesWhatWasThere) {
  PendingPages pending;
  ASSERT_TRUE(pending.Add({.start = 2 * kP, .end = 4 * kP, .file = 0, .offset = 0}));
  ASSERT_TRUE(pending.Add({.start = 6 * kP, .end = 9 * kP, .file = 0, .offset = 10 * kP}));
  ASSERT_TRUE(pending.Add({.start = 20 * kP, .end = 30 * kP, .file = 0, .offset = 50 * kP}));
  pending.Move(3 * kP, 21 * kP, 5 * kP);  // pages 3 to 7
  std::vector<int> expected(40, -1);
  expected[2] = 0;
  expected[8] = 12;
  expected[20] = 50;
  expected[21] = 1;
  expected[24] = 10;
  expected[25] = 11;
  for (int page = 26; page < 30; ++page) expected[static_cast<std::size_t>(page)] = 30 + page;
  EXPECT_EQ(FilePages(pending), expected);
}

TEST(PendingPagesTest, APageIsPendingOnce) {
  PendingPages pending;
  ASSERT_TRUE(pending.Add({.start = 2 * kP, .end = 4 * kP, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 3 * kP, .end = 5 * kP, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 1 * kP, .end = 3 * kP, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 8 * kP, .end = 8 * kP, .file = 0, .offset = 0}));
  EXPECT_EQ(pending.bytes(), 2 * kP);
}

}  // namespace
}  // namespace stasis::engine::pages
