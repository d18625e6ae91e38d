#include "engine/tasks/pid_reserver.h"

#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StatusIs;

TEST(PidReserverTest, TheNextForkGetsTheChosenPid) {
  const pid_t wanted[] = {31'111};
  auto reserver = PidReserver::Start(::getpid(), STASIS_PLACEHOLDER, wanted);
  ASSERT_THAT(reserver, IsOk());
  // Others fork on this machine too: the caller's rule is to try again.
  pid_t got = 0;
  for (int attempt = 0; attempt < 50 && got != wanted[0]; ++attempt) {
    ASSERT_THAT(reserver->MakeNext(wanted[0]), IsOk());
    Child child(Sleep);
    got = child.pid();
  }
  EXPECT_EQ(got, wanted[0]);
}

TEST(PidReserverTest, ATakenPidIsSaidToBe) {
  const pid_t wanted[] = {::getpid()};
  auto reserver = PidReserver::Start(::getpid(), STASIS_PLACEHOLDER, wanted);
  ASSERT_THAT(reserver, IsOk());
  EXPECT_THAT(reserver->CheckFree(::getpid()), StatusIs(StatusCode::kAlreadyExists));
}

TEST(PidReserverTest, AMissingHelperProgramIsAnError) {
  EXPECT_THAT(PidReserver::Start(::getpid(), "/nonexistent/stasis-placeholder", {}),
              StatusIs(StatusCode::kNotFound));
}

}  // namespace
}  // namespace stasis::engine
