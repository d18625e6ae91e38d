#include "engine/proc/task.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "unit/engine/proc/testdata.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(TaskStatusTest, ReadsATaskWhoseNameHasParenthesesNewlineAndBackslash) {
  const Result<TaskStatus> status = ParseTaskStatus(ProcText("status-odd-name"));
  ASSERT_THAT(status, IsOk());
  EXPECT_EQ(status->name, "a) b\n\\c");
  EXPECT_EQ(status->state, 'R');
  EXPECT_EQ(status->umask, 022u);
  EXPECT_THAT(status->ns_pid, ElementsAre(status->pid));
  EXPECT_THAT(status->groups, SizeIs(0));
  EXPECT_EQ(status->cap_effective, 0x1fffeffffffu);
  EXPECT_EQ(status->threads, 1u);
}

TEST(TaskStatusTest, ReadsAZombieWhichHasNoUmask) {
  const Result<TaskStatus> status = ParseTaskStatus(ProcText("status-zombie"));
  ASSERT_THAT(status, IsOk());
  EXPECT_EQ(status->state, 'Z');
  EXPECT_EQ(status->name, "sleep");
}

TEST(TaskStatusTest, AgreesWithTheRunningKernel) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, "/proc/self/status");
  ASSERT_THAT(text, IsOk());
  const Result<TaskStatus> status = ParseTaskStatus(*text);
  ASSERT_THAT(status, IsOk());
  EXPECT_EQ(status->tgid, getpid());
  EXPECT_EQ(status->ppid, getppid());
  EXPECT_EQ(status->uid[1], geteuid());
  EXPECT_EQ(status->gid[0], getgid());
  EXPECT_EQ(status->ns_sid.back(), getsid(0));
}

TEST(TaskStatusTest, SaysWhichLineIsMissing) {
  std::string text = ProcText("status-odd-name");
  text.erase(text.find("NSpid"), 5);
  EXPECT_THAT(ParseTaskStatus(text), StatusIs(StatusCode::kDataLoss, HasSubstr("NSpid")));
  EXPECT_THAT(ParseTaskStatus(""), StatusIs(StatusCode::kDataLoss, HasSubstr("status")));
}

TEST(TaskStatTest, ReadsANameWithParenthesesAndANewline) {
  const Result<TaskStat> stat = ParseTaskStat(ProcText("stat-odd-name"));
  ASSERT_THAT(stat, IsOk());
  EXPECT_EQ(stat->comm, "a) b\n\\c");
  EXPECT_EQ(stat->state, 'R');
  EXPECT_LT(stat->start_code, stat->end_code);
  EXPECT_LT(stat->arg_start, stat->arg_end);
  EXPECT_EQ(stat->arg_end, stat->env_start);
  EXPECT_EQ(stat->exit_code, 0);
}

TEST(TaskStatTest, RefusesACutText) {
  EXPECT_THAT(ParseTaskStat("1 (x) R 1 2 3"), StatusIs(StatusCode::kDataLoss));
  EXPECT_THAT(ParseTaskStat("1 x R"), StatusIs(StatusCode::kDataLoss));
}

TEST(LimitsTest, AreIndexedByResource) {
  const auto limits = ParseLimits(ProcText("limits"));
  ASSERT_THAT(limits, IsOk());
  EXPECT_EQ((*limits)[RLIMIT_STACK].soft, 8388608u);
  EXPECT_EQ((*limits)[RLIMIT_STACK].hard, ~std::uint64_t{0});
  EXPECT_EQ((*limits)[RLIMIT_CORE].soft, 0u);
  EXPECT_EQ((*limits)[RLIMIT_NOFILE].hard, 20000u);
  EXPECT_EQ((*limits)[RLIMIT_RTTIME].soft, ~std::uint64_t{0});
}

TEST(PosixTimersTest, TellWhomAndHowTheyNotify) {
  const auto timers = ParsePosixTimers(ProcText("timers"));
  ASSERT_THAT(timers, IsOk());
  ASSERT_THAT(*timers, SizeIs(3));
  EXPECT_EQ((*timers)[0].notify, SIGEV_SIGNAL | SIGEV_THREAD_ID);
  EXPECT_EQ((*timers)[0].clock_id, -2);
  EXPECT_EQ((*timers)[0].sigval, 0xdeadbeefu);
  EXPECT_EQ((*timers)[1].notify, SIGEV_NONE);
  EXPECT_EQ((*timers)[2].id, 0);
  EXPECT_EQ((*timers)[2].signal, 36);
  EXPECT_GT((*timers)[2].notify_pid, 0);
}

}  // namespace
}  // namespace stasis::engine
