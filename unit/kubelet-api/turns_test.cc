#include "kubelet-api/turns.h"

#include <gtest/gtest.h>

namespace stasis::testing {
namespace {

using kubelet_api::Turns;

TEST(TurnsTest, OneNameHasItsOwnAndNoMore) {
  Turns turns(2, 3);
  auto first = turns.Take("ann");
  const auto second = turns.Take("ann");
  EXPECT_TRUE(first && second);
  EXPECT_FALSE(turns.Take("ann"));
  first.reset();
  EXPECT_TRUE(turns.Take("ann"));
}

TEST(TurnsTest, AllTogetherHaveNoMoreThanThereAre) {
  Turns turns(2, 3);
  const auto first = turns.Take("ann"), second = turns.Take("ann");
  auto third = turns.Take("ben");
  EXPECT_FALSE(turns.Take("cara"));
  third.reset();
  EXPECT_TRUE(turns.Take("cara"));
}

}  // namespace
}  // namespace stasis::testing
