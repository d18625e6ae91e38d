#include "engine/tracee/freezer.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "engine/tracee/task_folder.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StateOf;
using ::stasis::testing::WaitForState;
using std::chrono::seconds;
using std::chrono::steady_clock;

// A process with two more threads: one sleeps, the other executes a program when told to.
class Executer {
 public:
  Executer() {
    EXPECT_EQ(::pipe(go_), 0);
    child_.emplace([this] {
      std::thread([] { Sleep(); }).detach();
      std::thread([this] {
        char letter;
        (void)!::read(go_[0], &letter, 1);
        ::execl("/bin/sleep", "sleep", "1000", nullptr);
      }).detach();
      return Sleep();
    });
    while (ThreadsOf(pid()).size() < 3) std::this_thread::yield();
  }
  ~Executer() {
    ::close(go_[0]);
    ::close(go_[1]);
  }
  pid_t pid() const { return child_->pid(); }
  pid_t sleeper() const { return ThreadsOf(pid())[1]; }
  void Execute() { EXPECT_EQ(::write(go_[1], "x", 1), 1); }

 private:
  int go_[2];
  std::optional<Child> child_;
};

TEST(FreezerTest, AThreadThatExecutesAProgramIsNotHeldByTheOthersThatWereSeized) {
  Executer process;
  std::map<pid_t, TaskFiles> files;
  const std::stop_token never;
  Freezer freezer(files, steady_clock::now() + seconds(20), never);
  const pid_t sleeper = process.sleeper();
  ASSERT_THAT(freezer.Seize(process.pid(), {sleeper}), IsOk());
  process.Execute();
  WaitForState(sleeper, 'Z');  // which the other thread waits for, with what PTRACE_SEIZE waits for
  ASSERT_THAT(freezer.Seize(process.pid(), {process.pid()}), IsOk());
  ASSERT_THAT(freezer.InterruptAll(), IsOk());
  ASSERT_THAT(freezer.WaitAll(), IsOk());
  EXPECT_EQ(freezer.threads().size(), 1u);
  EXPECT_EQ(StateOf(process.pid()), 't');
}

TEST(FreezerTest, AThreadIsSeizedOnceAlsoWhenItHasItsProcessesNumberNow) {
  Executer process;
  std::map<pid_t, TaskFiles> files;
  const std::stop_token never;
  Freezer freezer(files, steady_clock::now() + seconds(20), never);
  const pid_t executer = ThreadsOf(process.pid())[2];
  ASSERT_THAT(freezer.Seize(process.pid(), {executer}), IsOk());
  process.Execute();
  while (ThreadsOf(process.pid()).size() > 1) std::this_thread::yield();
  ASSERT_THAT(freezer.Visit(process.pid(), {process.pid()}), IsOk());
  ASSERT_THAT(freezer.WaitAll(), IsOk());
  EXPECT_EQ(freezer.threads().size(), 1u);
  EXPECT_EQ(freezer.threads().begin()->first, process.pid());
  EXPECT_EQ(StateOf(process.pid()), 't');
}

}  // namespace
}  // namespace stasis::engine
