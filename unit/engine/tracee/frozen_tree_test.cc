#include "engine/tracee/frozen_tree.h"

#include <sys/ptrace.h>

#include <atomic>
#include <thread>

#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StateOf;
using ::stasis::testing::StatusIs;
using ::stasis::testing::WaitForState;
using std::chrono::seconds;
using std::chrono::steady_clock;

Result<FrozenTree> Freeze(pid_t pid) {
  return FrozenTree::Freeze(pid, steady_clock::now() + seconds(10), {});
}

TEST(FrozenTreeTest, HoldsParentsChildrenAndThreads) {
  Child root([] {
    if (::fork() == 0) return Sleep();
    std::thread([] { Sleep(); }).detach();
    return Sleep();
  });
  WaitForState(root.pid(), 'S');
  auto tree = Freeze(root.pid());
  ASSERT_THAT(tree, IsOk());
  while (tree->processes().size() < 2 || tree->root().threads.size() < 2) {
    ASSERT_THAT(tree->Thaw(), IsOk());  // it was still on its way
    tree.emplace(*Freeze(root.pid()));
  }
  EXPECT_EQ(tree->processes()[1].parent, root.pid());
  EXPECT_EQ(tree->root().threads.front().tid(), root.pid());
  EXPECT_EQ(StateOf(root.pid()), 't');
  ::kill(tree->processes()[1].pid, SIGKILL);
}

TEST(FrozenTreeTest, ThawedTasksRunAndStoppedOnesStayStopped) {
  Child running(Sleep), stopped(Sleep);
  ::kill(stopped.pid(), SIGSTOP);
  WaitForState(stopped.pid(), 'T');
  {
    auto first = Freeze(running.pid());
    auto second = Freeze(stopped.pid());
    ASSERT_THAT(first, IsOk());
    ASSERT_THAT(second, IsOk());
    EXPECT_EQ(second->root().threads.front().stop_signal, SIGSTOP);
  }
  WaitForState(running.pid(), 'S');
  WaitForState(stopped.pid(), 'T');
}

TEST(FrozenTreeTest, ATracedProcessIsRefusedByName) {
  Child child(Sleep);
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, child.pid(), 0, 0), 0);
  std::thread other([&] {  // a tracer is a thread
    EXPECT_THAT(Freeze(child.pid()),
                StatusIs(StatusCode::kFailedPrecondition, ::testing::HasSubstr("is traced by")));
  });
  other.join();
}

TEST(FrozenTreeTest, AZombieAndNobodyCannotBeFrozen) {
  Child child([] { return 0; });
  WaitForState(child.pid(), 'Z');
  EXPECT_THAT(Freeze(child.pid()), StatusIs(StatusCode::kFailedPrecondition));
  const pid_t gone = child.pid();
  (void)child.Wait();
  EXPECT_THAT(Freeze(gone), StatusIs(StatusCode::kNotFound));
}

TEST(FrozenTreeTest, AVforkParentIsFrozenOnceItsChildIsGone) {
  Child root([] {
    // NOLINTNEXTLINE(bugprone-unsafe-functions): programs call it
    if (::vfork() == 0) {
      ::usleep(800'000);  // longer than one attempt to freeze
      ::_exit(0);
    }
    return Sleep();
  });
  WaitForState(root.pid(), 'D');
  EXPECT_THAT(Freeze(root.pid()), IsOk());
}

}  // namespace
}  // namespace stasis::engine
