#include "engine/tasks/clone_task.h"

#include <sched.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "unit/engine/memory/restore_fixture.h"
#include "unit/support/child.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAreArray;
using namespace std::chrono_literals;

constexpr unsigned long kThreadFlags =
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;

class CloneThreadsTest : public ::testing::Test {
 protected:
  Status Clone(const std::vector<pid_t>& wanted) {
    ASSIGN_OR_RETURN(PidReserver reserver,
                     PidReserver::Start(program_.process().pid, STASIS_PLACEHOLDER, wanted));
    return CloneThreads(program_.process(), reserver, kThreadFlags, wanted, threads_);
  }
  std::vector<pid_t> Made() const {
    std::vector<pid_t> tids;
    for (const Tracee& thread : threads_) tids.push_back(thread.tid());
    return tids;
  }
  // Numbers that are nobody's.
  static std::vector<pid_t> FreeOnes() {
    std::vector<pid_t> free;
    for (pid_t pid = 7000; free.size() < 3; ++pid) {
      if (::kill(pid, 0) != 0) free.push_back(pid);
    }
    return free;
  }
  // Traced threads keep their process.
  void TearDown() override {
    ::kill(program_.pid(), SIGKILL);
    for (Tracee& thread : threads_) {
      const auto give_up = std::chrono::steady_clock::now() + 10s;
      while (WaitForStop(thread.tid(), give_up).value_or(Stop{.kind = Stop::Kind::kExited}).kind !=
             Stop::Kind::kExited) {
      }
      thread.Forget();
    }
  }

  testing::FreshProgram program_;
  std::vector<Tracee> threads_;
};

TEST_F(CloneThreadsTest, EachHasTheIdThatItIsToHave) {
  const std::vector<pid_t> wanted = FreeOnes();
  ASSERT_THAT(Clone(wanted), IsOk());
  EXPECT_THAT(Made(), ElementsAreArray(wanted));
  for (const pid_t tid : wanted) {
    EXPECT_EQ(::access(("/proc/" + std::to_string(program_.process().pid) + "/task/" +
                        std::to_string(tid))
                           .c_str(),
                       F_OK),
              0);
  }
}

TEST_F(CloneThreadsTest, AnIdThatIsTakenForAMomentIsWaitedFor) {
  Child child(Sleep);
  std::vector<pid_t> wanted = FreeOnes();
  wanted.insert(wanted.begin() + 1, child.pid());
  std::thread ends([&child] {
    std::this_thread::sleep_for(60ms);
    ::kill(child.pid(), SIGKILL);
    child.Wait();
  });
  const Status status = Clone(wanted);
  ends.join();
  ASSERT_THAT(status, IsOk());
  EXPECT_THAT(Made(), ElementsAreArray(wanted));
}

TEST_F(CloneThreadsTest, WhatIsMadeIsToldOfThoughAnIdStaysTaken) {
  Child child(Sleep);
  std::vector<pid_t> wanted = FreeOnes();
  wanted.back() = child.pid();
  EXPECT_THAT(Clone(wanted), StatusIs(StatusCode::kAlreadyExists));
  wanted.pop_back();
  EXPECT_THAT(Made(), ElementsAreArray(wanted));
}

}  // namespace
}  // namespace stasis::engine
