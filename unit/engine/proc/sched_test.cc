#include "engine/proc/sched.h"

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

TEST(SchedTest, TheTimeOfTheLastRunIsReadToTheNanosecond) {
  const auto scheduler = ParseScheduler(
      "cat (1773, #threads: 1)\n"
      "-------------------------------------------------------------------\n"
      "se.exec_start                                :       3625141.004291\n"
      "se.sum_exec_runtime                          :             0.435676\n"
      "nr_switches                                  :                   12\n"
      "nr_voluntary_switches                        :                   11\n"
      "nr_involuntary_switches                      :                    1\n");
  ASSERT_THAT(scheduler, IsOk());
  EXPECT_EQ(scheduler->exec_start.count(), 3'625'141'004'291);
  EXPECT_EQ(scheduler->voluntary_switches, 11u);
}

TEST(SchedTest, ATextOfAnotherShapeIsRefused) {
  EXPECT_THAT(ParseScheduler(""), StatusIs(StatusCode::kDataLoss));
  EXPECT_THAT(ParseScheduler("se.exec_start : 12\nnr_voluntary_switches : 1\n"),
              StatusIs(StatusCode::kDataLoss));
}

TEST(SchedTest, ASleepingTaskIsInACallAndOthersAreNot) {
  const auto call = ParseSyscall(
      "230 0x0 0x0 0x7ffde799e170 0x7ffde799e1b0 0x0 0xffffffff 0x7ffde799e158 0x7f9e06369503\n");
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->number, 230);
  EXPECT_EQ(call->arguments[2], 0x7ffde799e170u);
  EXPECT_EQ(call->arguments[5], 0xffffffffu);
  EXPECT_FALSE(ParseSyscall("running\n").has_value());
  EXPECT_FALSE(ParseSyscall("-1 0x7ffde799e158 0x7f9e06369503\n").has_value());
  EXPECT_FALSE(ParseSyscall("").has_value());
}

}  // namespace
}  // namespace stasis::engine
