#include "engine/base/surviving_step.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis {
namespace {

using testing::IsOk;
using testing::StatusIs;

TEST(SurvivingStepTest, GivesWhatItSays) {
  int seen = 0;
  EXPECT_THAT(SurvivingStep("a step", [&] { return seen = 0; }), IsOk());
  EXPECT_THAT(SurvivingStep("a step", [] { return ENOENT; }), StatusIs(StatusCode::kNotFound));
}

TEST(SurvivingStepTest, EndsItsWorkWhenItsProgramIsKilled) {
  std::array<int, 2> go = {}, told = {};
  ASSERT_EQ(::pipe2(go.data(), O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(told.data(), O_CLOEXEC), 0);
  char byte = 0;
  {
    const testing::Child program([&] {
      return SurvivingStep(
                 "a step",
                 [&] {
                   char wait = 'b';
                   if (::write(told[1], &wait, 1) != 1) return errno;
                   if (::read(go[0], &wait, 1) != 1) return errno;
                   return ::write(told[1], "e", 1) == 1 ? 0 : errno;
                 }).ok()
                 ? 0
                 : 1;
    });
    ASSERT_EQ(::read(told[0], &byte, 1), 1);
  }  // it is killed and gone
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'e');
}

}  // namespace
}  // namespace stasis
