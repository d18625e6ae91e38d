// System calls in flight go on as if nothing had happened: no EINTR, no short sleep, no lost
// wake-up.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "target.h"

namespace {

std::int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace

int main(int, char** argv) {
  const int event = eventfd(0, EFD_SEMAPHORE);
  const int set = epoll_create1(0);
  epoll_event interest = {.events = EPOLLIN, .data = {}};
  CHECK(epoll_ctl(set, EPOLL_CTL_ADD, event, &interest) == 0);
  std::atomic<bool> go = false;
  const std::vector<std::function<void()>> calls = {
      [&] {
        std::uint64_t value = 0;
        CHECK_EQ(read(event, &value, sizeof(value)), 8);
      },
      [&] {
        pollfd wait = {event, POLLIN, 0};
        CHECK_EQ(poll(&wait, 1, 1'000'000), 1);
      },
      [&] {
        epoll_event got;
        int count = -1;
        do {
          count = epoll_wait(set, &got, 1, -1);  // EINTR after any stop, signal(7)
        } while (count == -1 && errno == EINTR);
        CHECK_EQ(count, 1);
      },
      [&] {
        fd_set set_of_one;
        FD_ZERO(&set_of_one);
        FD_SET(event, &set_of_one);
        timeval limit = {100'000, 0};
        CHECK_EQ(select(event + 1, &set_of_one, nullptr, nullptr, &limit), 1);
      },
      [&] {
        // Sleeps again and again, so that one sleep is under way at the checkpoint, whenever it
        // comes.
        while (!go) {
          const std::int64_t start = Now();
          const timespec length = {0, 50'000'000};
          CHECK(nanosleep(&length, nullptr) == 0);
          CHECK(Now() - start >= 50);
        }
      },
  };
  std::atomic<int> running = 0;
  std::vector<std::thread> threads;
  for (const auto& call : calls) {
    threads.emplace_back([&running, &call] {
      running++;
      call();
    });
  }
  while (running < static_cast<int>(calls.size())) {
    target::Sleep(1);
  }
  target::Sleep(20);

  target::PassCheckpoint(argv[1]);

  go = true;
  // A semaphore of 2: one for the reader, one that stays for those who only look.
  const std::uint64_t two = 2;
  CHECK_EQ(write(event, &two, sizeof(two)), 8);
  for (std::thread& thread : threads) {
    thread.join();
  }
}
