#include "engine/pages/pending_pages.h"

#include <gtest/gtest.h>

namespace stasis::engine::pages {
namespace {

constexpr std::uint64_t P = kPageBytes;

// The pages of the file that are pending from page 0 to 40, or -1 each.
std::vector<int> FilePages(const PendingPages& pending) {
  std::vector<int> pages;
  for (std::uint64_t page = 0; page < 40; ++page) {
    const auto run = pending.At(page * P);
    pages.push_back(run ? static_cast<int>(run->offset / P) : -1);
  }
  return pages;
}

TEST(PendingPagesTest, WhatIsRemovedLeavesItsNeighbours) {
  PendingPages pending;
  ASSERT_TRUE(pending.Add({.start = 10 * P, .end = 14 * P, .file = 3, .offset = 100 * P}));
  ASSERT_TRUE(pending.Add({.start = 14 * P, .end = 16 * P, .file = 3, .offset = 200 * P}));
  pending.Remove(11 * P, 15 * P);
  pending.Remove(0, 2 * P);
  EXPECT_EQ(pending.bytes(), 2 * P);
  EXPECT_EQ(pending.At(10 * P)->offset, 100 * P);
  EXPECT_FALSE(pending.At(11 * P) || pending.At(14 * P) || pending.At(16 * P));
  EXPECT_EQ(pending.From(11 * P)->start, 15 * P);
  EXPECT_EQ(pending.At(15 * P)->offset, 201 * P);
  EXPECT_FALSE(pending.From(16 * P));
}

TEST(PendingPagesTest, AMoveBringsHolesAlongAndReplacesWhatWasThere) {
  PendingPages pending;
  ASSERT_TRUE(pending.Add({.start = 2 * P, .end = 4 * P, .file = 0, .offset = 0}));
  ASSERT_TRUE(pending.Add({.start = 6 * P, .end = 9 * P, .file = 0, .offset = 10 * P}));
  ASSERT_TRUE(pending.Add({.start = 20 * P, .end = 30 * P, .file = 0, .offset = 50 * P}));
  pending.Move(3 * P, 21 * P, 5 * P);  // pages 3 to 7
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
  ASSERT_TRUE(pending.Add({.start = 2 * P, .end = 4 * P, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 3 * P, .end = 5 * P, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 1 * P, .end = 3 * P, .file = 0, .offset = 0}));
  EXPECT_FALSE(pending.Add({.start = 8 * P, .end = 8 * P, .file = 0, .offset = 0}));
  EXPECT_EQ(pending.bytes(), 2 * P);
}

}  // namespace
}  // namespace stasis::engine::pages
