#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

void Watch(int epoll, int fd, std::uint32_t events, std::uint64_t data) {
  LocalProcessActor actor;
  ASSERT_THAT(actor.EpollAdd(epoll, fd, events, data), IsOk());
}

TEST(EpollTest, WatchesTheSameFilesWithTheSameData) {
  const UniqueFd event = Fd(::eventfd(1, 0));
  const UniqueFd epoll = Fd(::epoll_create1(0));
  Watch(epoll.get(), event.get(), EPOLLIN | EPOLLET, 0x1122334455667788);
  const RoundTrip trip(epoll.get());
  ASSERT_THAT(trip.status, IsOk());
  LocalProcessActor process;
  ASSERT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process), IsOk());
  epoll_event ready = {};
  ASSERT_EQ(::epoll_wait(trip.restored.get(), &ready, 1, 1000), 1);
  EXPECT_EQ(ready.data.u64, 0x1122334455667788u);
  EXPECT_EQ(ready.events, std::uint32_t{EPOLLIN});
}

TEST(EpollTest, FindsATargetWhoseNumberIsAnotherFilesByNow) {
  UniqueFd event = Fd(::eventfd(1, 0));
  const UniqueFd epoll = Fd(::epoll_create1(0));
  const int number = event.get();
  Watch(epoll.get(), number, EPOLLIN, 7);
  const UniqueFd moved = Fd(::dup(number));
  const UniqueFd stranger = Fd(::eventfd(0, 0));
  ASSERT_EQ(::dup2(stranger.get(), number), number);
  Watch(epoll.get(), number, EPOLLIN, 8);
  const RoundTrip trip(epoll.get());
  ASSERT_THAT(trip.status, IsOk());
  std::map<std::uint64_t, std::uint32_t> fd_of;
  for (const auto& watch : trip.dump.entries[0].epfd().tfd()) fd_of[watch.data()] = watch.tfd();
  EXPECT_EQ(fd_of[8], static_cast<std::uint32_t>(number));
  EXPECT_EQ(fd_of[7], static_cast<std::uint32_t>(moved.get()));
}

TEST(EpollTest, RefusesATargetThatOnlyAnotherProcessHolds) {
  UniqueFd event = Fd(::eventfd(1, 0));
  const UniqueFd epoll = Fd(::epoll_create1(0));
  Watch(epoll.get(), event.get(), EPOLLIN, 7);
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();  // holds a copy of the eventfd until the pipe closes
  if (child == 0) {
    char byte;
    ::close(ready[1]);
    ::_exit(static_cast<int>(::read(ready[0], &byte, 1)));
  }
  event.Reset();
  EXPECT_THAT(RoundTrip(epoll.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("eventpoll")));
  ::close(ready[0]);
  ::close(ready[1]);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

TEST(EpollTest, NestedSetsCanBeWatched) {
  const UniqueFd event = Fd(::eventfd(1, 0));
  const UniqueFd inner = Fd(::epoll_create1(0));
  const UniqueFd outer = Fd(::epoll_create1(0));
  Watch(inner.get(), event.get(), EPOLLIN, 1);
  Watch(outer.get(), inner.get(), EPOLLIN, 2);
  const RoundTrip trip(outer.get());
  ASSERT_THAT(trip.status, IsOk());
  LocalProcessActor process;
  ASSERT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process), IsOk());
  epoll_event ready = {};
  ASSERT_EQ(::epoll_wait(trip.restored.get(), &ready, 1, 1000), 1);
  EXPECT_EQ(ready.data.u64, 2u);
}

}  // namespace
}  // namespace stasis::engine
