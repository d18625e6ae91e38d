#include "engine/proc/fdinfo.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "unit/engine/proc/testdata.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::SizeIs;

TEST(FdinfoTest, ReadsWhatEveryKindHas) {
  const Result<Fdinfo> info = ParseFdinfo(ProcText("fdinfo-locked-file"));
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->flags, static_cast<std::uint32_t>(O_RDWR) | 0100000u);
  EXPECT_GT(info->mnt_id, 0);
  EXPECT_GT(info->inode, 0u);
}

TEST(FdinfoTest, ReadsLocks) {
  const auto locks = ParseLocks(ProcText("fdinfo-locked-file"));
  ASSERT_THAT(locks, IsOk());
  ASSERT_THAT(*locks, SizeIs(2));
  EXPECT_EQ((*locks)[0].kind, FileLock::Kind::kFlock);
  EXPECT_TRUE((*locks)[0].write);
  EXPECT_EQ((*locks)[0].end, FileLock::kNoEnd);
  EXPECT_EQ((*locks)[1].kind, FileLock::Kind::kPosix);
  EXPECT_EQ((*locks)[1].start, 5u);
  EXPECT_EQ((*locks)[1].end, 14u);
  EXPECT_THAT(ParseLocks(ProcText("fdinfo-epoll")), IsOk());
  EXPECT_THAT(ParseLocks("lock:\tgarbage\n"), StatusIs(StatusCode::kDataLoss));
}

TEST(FdinfoTest, TellsWhatALeaseThatBreaksIsToBecome) {
  const auto locks = ParseLocks(
      "lock:\t1: LEASE  BREAKING  READ 7 00:1f:9 0 EOF\n"
      "lock:\t2: LEASE  BREAKING  UNLCK 7 00:1f:9 0 EOF\n"
      "lock:\t3: DELEG  ACTIVE    READ 7 00:1f:9 0 EOF\n");
  ASSERT_THAT(locks, IsOk());
  ASSERT_THAT(*locks, SizeIs(3));
  EXPECT_TRUE((*locks)[0].breaking && (*locks)[0].stays_to_read);
  EXPECT_TRUE((*locks)[1].breaking && !(*locks)[1].stays_to_read);
  EXPECT_EQ((*locks)[1].kind, FileLock::Kind::kLease);
  EXPECT_EQ((*locks)[2].kind, FileLock::Kind::kOther);
}

TEST(FdinfoTest, ReadsInotifyWatchesInOrder) {
  const auto watches = ParseInotify(ProcText("fdinfo-inotify"));
  ASSERT_THAT(watches, IsOk());
  ASSERT_THAT(*watches, SizeIs(2));
  EXPECT_EQ((*watches)[0].number, 1u);
  EXPECT_EQ((*watches)[1].number, 0x16u);
  EXPECT_EQ((*watches)[1].inode, 0x13u);
  EXPECT_EQ((*watches)[1].device, 0xfe00000u);
  EXPECT_EQ((*watches)[1].mask, 0x4000fffu);
  EXPECT_EQ((*watches)[1].handle_type, 1);
  EXPECT_EQ((*watches)[1].handle, std::string("\x13\0\0\0\0\0\0\0", 8));
}

TEST(FdinfoTest, ReadsFanotifyMarks) {
  const auto info = ParseFanotify(ProcText("fdinfo-fanotify"));
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->flags, 0x17u);
  EXPECT_EQ(info->event_flags, 0x88000u);
  ASSERT_THAT(info->marks, SizeIs(5));
  EXPECT_EQ(info->marks[4].inode, 0x9ac07au);
  EXPECT_EQ(info->marks[4].mask, 0x48000002u);
  EXPECT_FALSE(info->marks[4].whole_device);
  EXPECT_EQ(info->marks[2].flags, 0x640u);
  EXPECT_EQ(info->marks[2].ignored_mask, 2u);
  EXPECT_TRUE(info->marks[1].whole_device);
  EXPECT_EQ(info->marks[1].device, 0x1bu);
  EXPECT_EQ(info->marks[0].mount, 0x1e);
}

TEST(FdinfoTest, RefusesATextWithoutFlags) {
  EXPECT_THAT(ParseFdinfo("pos:\t0\n"), StatusIs(StatusCode::kDataLoss));
}

TEST(FdinfoTest, ReadsAnEventfd) {
  const Result<EventfdInfo> info = ParseEventfd(ProcText("fdinfo-eventfd"));
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->counter, 5u);
  EXPECT_EQ(info->semaphore, true);
  const Result<EventfdInfo> old = ParseEventfd("eventfd-count: fffffffffffffffe\n");
  ASSERT_THAT(old, IsOk());
  EXPECT_EQ(old->counter, 0xfffffffffffffffeu);
  EXPECT_EQ(old->semaphore, std::nullopt);
}

TEST(FdinfoTest, ReadsASignalfd) {
  const Result<std::uint64_t> mask = ParseSignalfdMask(ProcText("fdinfo-signalfd"));
  ASSERT_THAT(mask, IsOk());
  EXPECT_EQ(*mask, 0x8000000000000200u);  // SIGUSR1 and 64
}

TEST(FdinfoTest, ReadsATimerfd) {
  const Result<TimerfdInfo> info = ParseTimerfd(ProcText("fdinfo-timerfd"));
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->clock_id, CLOCK_BOOTTIME);
  EXPECT_EQ(info->ticks, 1u);
  EXPECT_EQ(info->settime_flags, std::uint32_t{TFD_TIMER_ABSTIME});
  EXPECT_EQ(info->value.tv_sec, 0);
  EXPECT_EQ(info->interval.tv_sec, 1);
  EXPECT_EQ(info->interval.tv_nsec, 500);
}

TEST(FdinfoTest, ReadsEveryTargetOfAnEpoll) {
  const auto targets = ParseEpollTargets(ProcText("fdinfo-epoll"));
  ASSERT_THAT(targets, IsOk());
  ASSERT_THAT(*targets, SizeIs(2));
  EXPECT_EQ((*targets)[0].fd, 4);
  EXPECT_EQ((*targets)[0].events, EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLET);
  EXPECT_EQ((*targets)[0].data, 0x1122334455667788u);
  EXPECT_EQ((*targets)[0].inode, 0x40eu);
  EXPECT_EQ((*targets)[1].device, 0xfu);
  EXPECT_THAT(ParseEpollTargets("tfd: 5 events: zz\n"), StatusIs(StatusCode::kDataLoss));
}

}  // namespace
}  // namespace stasis::engine
