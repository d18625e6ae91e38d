#include "kubelet-api/access/remembered.h"

#include <gtest/gtest.h>

namespace stasis::testing {
namespace {

using kubelet_api::Remembered;

constexpr auto kLong = std::chrono::hours(1);

TEST(RememberedTest, TheOldestGoesWhenThereAreTooMany) {
  Remembered<int> answers(kLong, 3);
  for (int number = 0; number < 4; ++number) answers.Put(std::to_string(number), number);
  EXPECT_FALSE(answers.Find("0"));
  for (int number = 1; number < 4; ++number)
    EXPECT_EQ(answers.Find(std::to_string(number)), number);
}

TEST(RememberedTest, AnAnswerDoesNotLastLongerByComingAgain) {
  Remembered<int> answers(kLong, 2);
  answers.Put("a", 1);
  answers.Put("b", 2);
  answers.Put("a", 3);
  EXPECT_EQ(answers.Find("a"), 1);
  answers.Put("c", 4);
  EXPECT_FALSE(answers.Find("a"));
}

TEST(RememberedTest, ItsTimeEnds) {
  Remembered<int> answers(std::chrono::seconds(0));
  answers.Put("a", 1);
  EXPECT_FALSE(answers.Find("a"));
}

}  // namespace
}  // namespace stasis::testing
