#include "engine/tracee/waits.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>

#include <cerrno>

#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::WaitForState;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr std::uint64_t kMinusOne = ~std::uint64_t{0};

arch::GeneralRegisters Interrupted(long number, std::int64_t result, std::uint64_t second = 0) {
  arch::GeneralRegisters registers = {};
  registers.orig_rax = static_cast<std::uint64_t>(number);
  registers.rax = static_cast<std::uint64_t>(result);
  registers.rsi = second;
  registers.rip = 0x1002;
  return registers;
}

TEST(WaitsTest, AWaitWithoutTheKernelsNotesIsIssuedAgain) {
  for (const long number : {SYS_poll, SYS_nanosleep, SYS_clock_nanosleep}) {
    const auto registers = arch::AsRestarted(Interrupted(number, arch::kRestartBlock));
    EXPECT_EQ(registers.rax, static_cast<std::uint64_t>(number));
    EXPECT_EQ(registers.rip, 0x1000u);
  }
  const auto date = arch::AsRestarted(
      Interrupted(SYS_futex, arch::kRestartBlock, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG));
  EXPECT_EQ(date.rip, 0x1000u);
}

TEST(WaitsTest, AFutexThatTakesATimeSaysEintrAsItsContractAllows) {
  for (const auto& interrupted :
       {Interrupted(SYS_futex, arch::kRestartBlock, FUTEX_WAIT | FUTEX_PRIVATE_FLAG),
        Interrupted(SYS_restart_syscall, arch::kRestartBlock)}) {
    const auto registers = arch::AsRestarted(interrupted);
    EXPECT_EQ(static_cast<std::int64_t>(registers.rax), -EINTR);
    EXPECT_EQ(registers.rip, 0x1002u);
  }
}

TEST(WaitsTest, ACallEndsByAStopOnlyWhenItHasNoTimeLimit) {
  const auto ended = [](long number, std::int64_t result, std::array<std::uint64_t, 6> arguments) {
    return EndedByStop({.number = number, .arguments = arguments, .result = result});
  };
  EXPECT_TRUE(ended(SYS_epoll_wait, -EINTR, {0, 0, 1, kMinusOne}));
  EXPECT_TRUE(ended(SYS_epoll_wait, -EINTR, {0, 0, 1, 0xffffffff}));
  EXPECT_FALSE(ended(SYS_epoll_wait, -EINTR, {0, 0, 1, 1000}));
  EXPECT_FALSE(ended(SYS_epoll_wait, 1, {0, 0, 1, kMinusOne}));
  EXPECT_TRUE(ended(SYS_rt_sigtimedwait, -EINTR, {1, 1, 0, 8}));
  EXPECT_FALSE(ended(SYS_rt_sigtimedwait, -EINTR, {1, 1, 1, 8}));
  EXPECT_TRUE(ended(SYS_io_uring_enter, -EINTR, {3, 0, 1, 1}));
  EXPECT_FALSE(ended(SYS_io_uring_enter, -EINTR, {3, 0, 1, 1 | 8}));  // IORING_ENTER_EXT_ARG
  EXPECT_FALSE(ended(SYS_read, -EINTR, {}));
}

TEST(WaitsTest, OnlyATimeFromNowOnIsATimedWait) {
  EXPECT_TRUE(TimedWaitOf({.number = SYS_poll, .arguments = {0, 0, 1000}}));
  EXPECT_FALSE(TimedWaitOf({.number = SYS_poll, .arguments = {0, 0, 0xffffffff}}));
  EXPECT_TRUE(TimedWaitOf({.number = SYS_clock_nanosleep, .arguments = {CLOCK_MONOTONIC, 0, 1}}));
  EXPECT_FALSE(TimedWaitOf(
      {.number = SYS_clock_nanosleep, .arguments = {CLOCK_MONOTONIC, TIMER_ABSTIME, 1}}));
  EXPECT_TRUE(TimedWaitOf({.number = SYS_futex, .arguments = {1, FUTEX_WAIT_PRIVATE, 0, 1}}));
  EXPECT_FALSE(TimedWaitOf({.number = SYS_futex, .arguments = {1, FUTEX_WAIT_PRIVATE, 0, 0}}));
  EXPECT_FALSE(TimedWaitOf({.number = SYS_futex, .arguments = {1, FUTEX_WAIT_BITSET, 0, 1}}));
}

// What an image says is left of a wait of 100 s in which a program has slept for at least 300 ms. `dumps`:
// from the second on, the wait was restarted.
template <typename Wait>
void ExpectLeft(Wait wait, int dumps) {
  constexpr nanoseconds kWhole = seconds(100);
  SharedWords words;
  const auto start = steady_clock::now();
  Child child = Program([&] {
    words[0] = 1;
    wait();
    return 1;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  for (int dump = 0; dump < dumps; ++dump) {
    WaitForState(child.pid(), 'S');
    ::usleep(300'000);
    MemoryImages images;
    const CheckpointImages loaded = ImagesOf(child.pid(), images);
    const auto& core = loaded.processes.front().leader().core.thread_core();
    ASSERT_TRUE(core.has_stasis_wait_left_nsec());
    const nanoseconds left(core.stasis_wait_left_nsec());
    EXPECT_LE(left, kWhole - milliseconds(200));
    EXPECT_GE(left, kWhole - (steady_clock::now() - start));
  }
}

TEST(WaitsTest, AnImageSaysWhatIsLeftOfAPoll) {
  ExpectLeft([] { ::poll(nullptr, 0, 100'000); }, 2);
}

TEST(WaitsTest, AnImageSaysWhatIsLeftOfASleep) {
  ExpectLeft(
      [] {
        const timespec time = {100, 0};
        ::nanosleep(&time, nullptr);
      },
      2);
  ExpectLeft(
      [] {
        timespec time = {100, 0};
        ::nanosleep(&time, &time);
      },
      2);
}

TEST(WaitsTest, AnImageSaysWhatIsLeftOfAFutexWait) {
  ExpectLeft(
      [] {
        std::uint32_t word = 0;
        const timespec time = {100, 0};
        ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, nullptr, 0);
      },
      2);
}

TEST(WaitsTest, ADumpDoesNotEndAWaitForEvents) {
  SharedWords words;
  Child child = Prepared(words, [&] {
    const int set = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event got;
    words[0] = 1;
    ::epoll_wait(set, &got, 1, -1);
    ::_exit(1);
  });
  for (int dump = 0; dump < 3; ++dump) {
    MemoryImages images;
    EXPECT_THAT(DumpTo(child.pid(), images), IsOk());
    WaitForState(child.pid(), 'S');
    EXPECT_EQ(ProcText(child.pid(), "syscall").substr(0, 4), std::to_string(SYS_epoll_wait) + " ");
  }
}

TEST(WaitsTest, ASignalThatComesMeanwhileStillEndsAWaitForEvents) {
  SharedWords words;
  Child child = Program([&] {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    action.sa_flags = SA_RESTART;  // which epoll_wait(2) does not heed
    ::sigaction(SIGUSR1, &action, nullptr);
    const int set = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event got;
    words[0] = 1;
    return ::epoll_wait(set, &got, 1, -1) == -1 && errno == EINTR ? 0 : 1;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  WaitForState(child.pid(), 'S');
  MemoryImages images;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.while_frozen = [&child](std::span<const pid_t>) {
    ::kill(child.pid(), SIGUSR1);
    return OkStatus();
  };
  EXPECT_THAT(Dump(request, images), IsOk());
  EXPECT_EQ(child.Wait(), 0);
}

}  // namespace
}  // namespace stasis::engine
