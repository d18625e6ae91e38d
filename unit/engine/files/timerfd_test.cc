#include <poll.h>
#include <sys/timerfd.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

itimerspec Get(int fd) {
  itimerspec setting = {};
  EXPECT_EQ(::timerfd_gettime(fd, &setting), 0);
  return setting;
}

// Waits until a timer that is due has expired.
void AwaitExpiry(int fd) {
  pollfd waiting = {.fd = fd, .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&waiting, 1, 10'000), 1);
}

TEST(TimerfdTest, KeepsWhatRemainsOfARelativeTimer) {
  const UniqueFd fd = Fd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
  const itimerspec setting = {.it_interval = {7, 500}, .it_value = {1000, 0}};
  ASSERT_EQ(::timerfd_settime(fd.get(), 0, &setting, nullptr), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  const itimerspec restored = Get(trip.restored.get());
  EXPECT_LE(restored.it_value.tv_sec, 1000);
  EXPECT_GT(restored.it_value.tv_sec, 900);
  EXPECT_EQ(restored.it_interval.tv_sec, 7);
  EXPECT_EQ(restored.it_interval.tv_nsec, 500);
  EXPECT_EQ(Describe(trip.restored.get(), 1).flags, Describe(fd.get(), 1).flags);
}

TEST(TimerfdTest, KeepsWhatRemainsOfAnAbsoluteTimer) {
  const UniqueFd fd = Fd(::timerfd_create(CLOCK_REALTIME, 0));
  itimerspec setting = {};
  ASSERT_EQ(::clock_gettime(CLOCK_REALTIME, &setting.it_value), 0);
  setting.it_value.tv_sec += 1000;
  ASSERT_EQ(::timerfd_settime(fd.get(), TFD_TIMER_ABSTIME, &setting, nullptr), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_GT(Get(trip.restored.get()).it_value.tv_sec, 900);
  EXPECT_LE(Get(trip.restored.get()).it_value.tv_sec, 1000);
}

TEST(TimerfdTest, KeepsExpirationsThatNobodyHasRead) {
  const UniqueFd fd = Fd(::timerfd_create(CLOCK_MONOTONIC, 0));
  const itimerspec setting = {.it_interval = {}, .it_value = {0, 1}};
  ASSERT_EQ(::timerfd_settime(fd.get(), 0, &setting, nullptr), 0);
  AwaitExpiry(fd.get());
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  std::uint64_t ticks = 0;
  ASSERT_EQ(::read(trip.restored.get(), &ticks, sizeof(ticks)), 8);
  EXPECT_EQ(ticks, 1u);
}

TEST(TimerfdTest, AnIntervalTimerThatExpiredUnreadGoesOn) {
  const UniqueFd fd = Fd(::timerfd_create(CLOCK_MONOTONIC, 0));
  const itimerspec setting = {.it_interval = {1000, 0}, .it_value = {0, 1}};
  ASSERT_EQ(::timerfd_settime(fd.get(), 0, &setting, nullptr), 0);
  AwaitExpiry(fd.get());
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_GT(Get(trip.restored.get()).it_value.tv_sec, 900);
  std::uint64_t ticks = 0;
  ASSERT_EQ(::read(trip.restored.get(), &ticks, sizeof(ticks)), 8);
  EXPECT_EQ(ticks, 1u);
  ASSERT_EQ(::read(fd.get(), &ticks, sizeof(ticks)), 8);
  EXPECT_EQ(ticks, 1u) << "the dump changed the original";
}

TEST(TimerfdTest, AnExpiredIntervalTimerThatCriuDumpedGoesOn) {
  const UniqueFd fd = Fd(::timerfd_create(CLOCK_MONOTONIC, 0));
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  for (const std::uint32_t flags : {0u, static_cast<std::uint32_t>(TFD_TIMER_ABSTIME)}) {
    image::TimerfdEntry& timer = *dump.entries[0].mutable_tfd();
    timer.set_settime_flags(flags);
    timer.set_ticks(3);
    timer.set_isec(1000);  // and 0 remaining
    LocalRestoreContext restore(dump);
    const Result<UniqueFd> restored = restore.Restore(id);
    ASSERT_THAT(restored, IsOk());
    const itimerspec setting = Get(restored->get());
    EXPECT_GT(setting.it_value.tv_sec, 900) << flags;
    EXPECT_LE(setting.it_value.tv_sec, 1000) << flags;
    std::uint64_t ticks = 0;
    ASSERT_EQ(::read(restored->get(), &ticks, sizeof(ticks)), 8);
    EXPECT_EQ(ticks, 3u);
  }
}

TEST(TimerfdTest, RefusesAnAlarmClock) {
  const UniqueFd fd(::timerfd_create(CLOCK_BOOTTIME_ALARM, 0));
  if (!fd) GTEST_SKIP() << "no alarm clock here: " << std::strerror(errno);
  EXPECT_THAT(RoundTrip(fd.get()).status, StatusIs(StatusCode::kUnimplemented, HasSubstr("clock")));
}

}  // namespace
}  // namespace stasis::engine
