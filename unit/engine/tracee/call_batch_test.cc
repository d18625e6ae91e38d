#include "engine/tracee/call_batch.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
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
using std::chrono::seconds;
using std::chrono::steady_clock;

// A child that sleeps, stopped, with room for calls.
struct Asked {
  explicit Asked(Child& child)
      : tracee(Stopped(child.pid()).value()),
        area(MakeArea(tracee, std::nullopt).value()),
        remote(RemoteSyscalls::Begin(tracee, area.slot(0)).value()),
        how{.signal = SIGWINCH, .ids = {child.pid(), child.pid()}} {}

  Status Run(CallBatch& batch) {
    RETURN_IF_ERROR(batch.Begin(remote, how));
    return batch.End();
  }
  Status Leave() {
    RETURN_IF_ERROR(remote.Finish());
    RETURN_IF_ERROR(RemoveArea(tracee, area));
    RETURN_IF_ERROR(tracee.Interrupt());
    return tracee.Detach();
  }

  Tracee tracee;
  RemoteArea area;
  RemoteSyscalls remote;
  OneRun how;
};

TEST(CallBatchTest, CallsGiveTheirResultsAndLeaveASleepAsItWas) {
  Child child([] {
    timespec rest = {.tv_sec = 0, .tv_nsec = 300'000'000};
    return ::nanosleep(&rest, &rest) == 0 ? 0 : 1;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  Asked asked(child);
  CallBatch batch;
  std::int64_t pid = 0, closed = 1;
  itimerval timer = {.it_interval = {1, 1}, .it_value = {1, 1}};
  batch.Add("getpid", SYS_getpid, {}, [&](std::int64_t result) { pid = result; });
  batch.AddOptional("close", SYS_close, {12345}, [&](std::int64_t result) {
    closed = result;
    return OkStatus();
  });
  batch.AddFilling<itimerval>("getitimer", SYS_getitimer, {ITIMER_REAL, CallBatch::kHere},
                              [&](const itimerval& value) { timer = value; });
  ::kill(child.pid(), SIGWINCH);  // of somebody else, which must not be taken for the end
  ASSERT_THAT(asked.Run(batch), IsOk());
  EXPECT_EQ(pid, child.pid());
  EXPECT_EQ(closed, 1);  // it failed, and told nothing
  EXPECT_EQ(timer.it_value.tv_usec, 0);
  ASSERT_THAT(asked.Leave(), IsOk());
  EXPECT_EQ(child.Wait(), 0);
}

TEST(CallBatchTest, MoreCallsThanThereIsRoomForAreMadeInParts) {
  Child child(Sleep);
  Asked asked(child);
  CallBatch batch;
  std::vector<std::int64_t> results;
  for (int i = 0; i < 100; ++i) {
    batch.Add("getpid", SYS_getpid, {}, [&](std::int64_t result) { results.push_back(result); });
  }
  ASSERT_THAT(asked.Run(batch), IsOk());
  EXPECT_EQ(results, std::vector<std::int64_t>(100, child.pid()));
}

TEST(CallBatchTest, APointerInWhatIsGivenLeadsIntoIt) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  Child child(Sleep);
  Asked asked(child);
  struct Text {
    iovec where = {reinterpret_cast<void*>(offsetof(Text, letters)), 4};
    char letters[4] = {'t', 'e', 'x', 't'};
  };
  CallBatch batch;
  std::int64_t written = 0;
  for (int i = 0; i < 2; ++i) {
    batch.AddPointing("writev", SYS_writev,
                      {static_cast<std::uint64_t>(ends[1]), CallBatch::kHere, 1}, Text(),
                      offsetof(Text, where), [&](std::int64_t result) { written += result; });
  }
  ASSERT_THAT(asked.Run(batch), IsOk());
  EXPECT_EQ(written, 8);
  std::string text(8, '\0');
  EXPECT_EQ(::read(ends[0], text.data(), text.size()), 8);
  EXPECT_EQ(text, "texttext");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(CallBatchTest, OneByOneTheyGiveTheSameAndAnErrorNamesTheCall) {
  Child child(Sleep);
  Asked asked(child);
  // As a filter would have it.
  asked.how.allowed = [](const arch::CallInside& call, std::uint64_t) {
    return call.number != SYS_getpid;
  };
  CallBatch batch;
  std::int64_t pid = 0;
  batch.Add("getpid", SYS_getpid, {}, [&](std::int64_t result) { pid = result; });
  batch.Add("close", SYS_close, {12345}, [](std::int64_t) {});
  const Status status = asked.Run(batch);
  EXPECT_EQ(ErrnoOf(status), EBADF);
  EXPECT_THAT(Message(status), ::testing::HasSubstr("close"));
}

TEST(CallBatchTest, AThreadWhoseTracerIsKilledMeanwhileRunsOn) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  Child child(Sleep);
  Child tracer([&] {
    Asked asked(child);
    CallBatch batch;
    batch.Add("getpid", SYS_getpid, {}, [](std::int64_t) {});
    if (!batch.Begin(asked.remote, asked.how).ok()) return 1;
    if (::write(ready[1], "x", 1) != 1) return 1;
    return Sleep();
  });
  char letter = 0;
  ASSERT_EQ(::read(ready[0], &letter, 1), 1);
  ::kill(tracer.pid(), SIGKILL);
  (void)tracer.Wait();
  // It sleeps in its own code again: what it was made to do is behind it.
  const std::string pause = std::to_string(SYS_pause) + " ";
  const auto give_up = steady_clock::now() + seconds(10);
  const auto sleeps = [&] {
    return ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(child.pid()) + "/syscall")
        .value_or("")
        .starts_with(pause);
  };
  while (!sleeps() && steady_clock::now() < give_up) std::this_thread::yield();
  EXPECT_TRUE(sleeps());
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace stasis::engine
