// epoll(7): level, edge and one-shot interest, the user's data, and a set within a set.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <cstdint>

#include "target.h"

namespace {

void Watch(int set, int fd, std::uint32_t events, std::uint64_t data) {
  epoll_event event = {.events = events, .data = {.u64 = data}};
  CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
}

// The data of the one event that is there, 0 if none.
std::uint64_t Next(int set) {
  epoll_event event;
  const int count = epoll_wait(set, &event, 1, 0);
  CHECK(count >= 0);
  return count == 0 ? 0 : event.data.u64;
}

void Post(int fd) {
  const std::uint64_t one = 1;
  CHECK_EQ(write(fd, &one, sizeof(one)), 8);
}

}  // namespace

int main(int, char** argv) {
  const int level = eventfd(0, 0);
  const int edge = eventfd(0, 0);
  const int once = eventfd(0, 0);
  const int idle = eventfd(0, 0);
  const int levels = epoll_create1(EPOLL_CLOEXEC);
  const int edges = epoll_create1(0);
  const int onces = epoll_create1(0);
  const int outer = epoll_create1(0);
  Watch(levels, level, EPOLLIN, 0xfeedfacecafebeef);
  Watch(edges, edge, EPOLLIN | EPOLLET, 2);
  Watch(onces, once, EPOLLIN | EPOLLONESHOT, 3);
  Watch(onces, idle, EPOLLIN, 5);
  Watch(outer, levels, EPOLLIN, 4);
  Post(once);
  CHECK_EQ(Next(onces), 3);  // spent: nothing more comes until it is armed again
  CHECK_EQ(Next(onces), 0);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(Next(outer), 0);
  Post(level);
  CHECK_EQ(Next(outer), 4);
  CHECK(Next(levels) == 0xfeedfacecafebeef);
  CHECK(Next(levels) == 0xfeedfacecafebeef);
  Post(edge);
  CHECK_EQ(Next(edges), 2);
  CHECK_EQ(Next(edges), 0);
  CHECK_EQ(Next(onces), 0);
  Post(idle);
  CHECK_EQ(Next(onces), 5);
  CHECK_EQ(fcntl(levels, F_GETFD), FD_CLOEXEC);
}
