#include "engine/tracee/remote_syscalls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <string>
#include <thread>

#include "engine/base/io.h"
#include "unit/engine/tracee/stopped.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;

std::string MapsOf(pid_t pid) {
  return ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/maps").value_or("");
}

TEST(RemoteSyscallsTest, ACallRunsInTheProcessAndLeavesItAsItWas) {
  Child child(Sleep);
  auto tracee = Stopped(child.pid());
  ASSERT_THAT(tracee, IsOk());
  const std::string before = MapsOf(child.pid());
  const auto registers = arch::ReadGeneral(child.pid());
  auto area = MakeArea(*tracee, std::nullopt);
  ASSERT_THAT(area, IsOk());
  auto remote = RemoteSyscalls::Begin(*tracee, area->place());
  ASSERT_THAT(remote, IsOk());
  EXPECT_EQ(*remote->Call("getpid", SYS_getpid), static_cast<std::uint64_t>(child.pid()));
  ASSERT_THAT(remote->Finish(), IsOk());
  ASSERT_THAT(RemoveArea(*tracee, *area), IsOk());
  EXPECT_EQ(MapsOf(child.pid()), before);
  const auto after = arch::ReadGeneral(child.pid());
  EXPECT_EQ(arch::InstructionPointer(*after), arch::InstructionPointer(*registers));
}

TEST(RemoteSyscallsTest, AnErrorOfTheCallKeepsItsErrno) {
  Child child(Sleep);
  auto tracee = Stopped(child.pid());
  ASSERT_THAT(tracee, IsOk());
  auto area = MakeArea(*tracee, std::nullopt);
  ASSERT_THAT(area, IsOk());
  auto remote = RemoteSyscalls::Begin(*tracee, area->place());
  ASSERT_THAT(remote, IsOk());
  EXPECT_EQ(ErrnoOf(remote->Call("close", SYS_close, 12345).status()), EBADF);
}

TEST(RemoteSyscallsTest, AnInterruptedSleepGoesOnForWhatWasLeftOfIt) {
  // nanosleep is restarted through the kernel's restart block, which rt_sigreturn would lose.
  Child child([] {
    timespec rest = {.tv_sec = 0, .tv_nsec = 300'000'000};
    return ::nanosleep(&rest, &rest) == 0 ? 0 : 1;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  {
    auto tracee = Stopped(child.pid());
    ASSERT_THAT(tracee, IsOk());
    auto area = MakeArea(*tracee, std::nullopt);
    ASSERT_THAT(area, IsOk());
    auto remote = RemoteSyscalls::Begin(*tracee, area->place());
    ASSERT_THAT(remote, IsOk());
    EXPECT_THAT(remote->Call("getpid", SYS_getpid), IsOk());
    ASSERT_THAT(remote->Finish(), IsOk());
    ASSERT_THAT(RemoveArea(*tracee, *area), IsOk());
    ASSERT_THAT(tracee->Interrupt(), IsOk());
    ASSERT_THAT(tracee->Detach(), IsOk());
  }
  EXPECT_EQ(child.Wait(), 0);
}

TEST(RemoteSyscallsTest, AThreadWhoseTracerIsKilledBetweenCallsRunsOn) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  // Counts, and ends well only if nothing of it was damaged.
  Child child([&] {
    volatile double sum = 0;
    for (long i = 0; i < 400'000'000; ++i) sum = sum + 1.0;
    return sum == 400'000'000.0 ? 0 : 1;
  });
  Child tracer([&] {
    auto tracee = Stopped(child.pid());
    if (!tracee.ok()) return 1;
    auto area = MakeArea(*tracee, std::nullopt);
    if (!area.ok()) return 1;
    auto remote = RemoteSyscalls::Begin(*tracee, area->place());
    if (!remote.ok() || !remote->Call("getpid", SYS_getpid).ok()) return 1;
    if (::write(ready[1], "x", 1) != 1) return 1;
    return Sleep();
  });
  char letter = 0;
  ASSERT_EQ(::read(ready[0], &letter, 1), 1);
  ::kill(tracer.pid(), SIGKILL);
  (void)tracer.Wait();
  EXPECT_EQ(child.Wait(), 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace stasis::engine
