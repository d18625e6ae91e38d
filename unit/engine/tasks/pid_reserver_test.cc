#include "engine/tasks/pid_reserver.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <vector>

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

TEST(PidReserverTest, OneTakenAmongManyIsFoundAndTheNextQuestionIsAnswered) {
  const pid_t high[] = {4'000'000};
  auto reserver = PidReserver::Start(::getpid(), STASIS_PLACEHOLDER, high);
  ASSERT_THAT(reserver, IsOk());
  std::vector<pid_t> many;
  for (pid_t pid = 4'100'000; pid < 4'103'000; ++pid) many.push_back(pid);  // nobody's, it is hoped
  EXPECT_THAT(reserver->CheckFree(many), IsOk());
  many[1500] = ::getpid();
  EXPECT_THAT(reserver->CheckFree(many), StatusIs(StatusCode::kAlreadyExists));
  EXPECT_THAT(reserver->CheckFree(4'100'000), IsOk());
}

// A child with that number, or 0 where somebody has it.
pid_t Take(pid_t pid) {
  clone_args arguments = {};
  arguments.exit_signal = SIGCHLD;
  arguments.set_tid = reinterpret_cast<std::uint64_t>(&pid);
  arguments.set_tid_size = 1;
  const auto child = static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof(arguments)));
  if (child == 0) ::_exit(Sleep());
  return std::max(child, 0);
}

// As of ten thousand threads, with the last numbers that there are, where the first free ones are others' as well.
TEST(PidReserverTest, FindsAPlaceBesideManyWantedOnes) {
  std::ifstream file("/proc/sys/kernel/pid_max");
  pid_t last = 0;
  file >> last;
  std::vector<pid_t> wanted;
  for (pid_t pid = last / 3; pid < last; ++pid) wanted.push_back(pid);
  std::vector<pid_t> others;
  for (pid_t pid = 301; pid < 340; ++pid) others.push_back(Take(pid));
  auto reserver = PidReserver::Start(::getpid(), STASIS_PLACEHOLDER, wanted);
  EXPECT_THAT(reserver, IsOk());
  if (reserver.ok()) {
    EXPECT_THAT(reserver->CheckFree(::getpid()), StatusIs(StatusCode::kAlreadyExists));
  }
  for (const pid_t pid : others) {
    if (pid == 0) continue;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
}

TEST(PidReserverTest, AMissingHelperProgramIsAnError) {
  EXPECT_THAT(PidReserver::Start(::getpid(), "/nonexistent/stasis-placeholder", {}),
              StatusIs(StatusCode::kNotFound));
}

}  // namespace
}  // namespace stasis::engine
