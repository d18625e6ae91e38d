// System calls in flight go on as if nothing had happened: no EINTR, no short sleep, no lost
// wake-up.
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "target.h"

namespace {

constexpr long kNap = 50;  // milliseconds
constexpr timespec kNapTime = {0, kNap * 1'000'000};

std::int64_t Nanoseconds(const timespec& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

timespec Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now;
}

std::atomic<bool> go = false;

// Naps again and again, so that one nap is under way at the checkpoint, whenever it comes. None may be
// shorter than it was to be.
template <typename Nap>
std::function<void()> Naps(Nap nap) {
  return [nap] {
    while (!go) {
      const timespec start = Now();
      nap();
      CHECK(Nanoseconds(Now()) - Nanoseconds(start) >= kNap * 1'000'000);
    }
  };
}

long Futex(int operation, const timespec* time) {
  static std::uint32_t word = 0;
  return syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, 0, time, nullptr,
                 FUTEX_BITSET_MATCH_ANY);
}

}  // namespace

int main(int, char** argv) {
  const int event = eventfd(0, EFD_SEMAPHORE);
  const int set = epoll_create1(0);
  epoll_event interest = {.events = EPOLLIN, .data = {}};
  CHECK(epoll_ctl(set, EPOLL_CTL_ADD, event, &interest) == 0);
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  CHECK(sigprocmask(SIG_BLOCK, &usr1, nullptr) == 0);
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
        pollfd wait = {event, POLLIN, 0};
        CHECK_EQ(poll(&wait, 1, -1), 1);
      },
      // These give EINTR after SIGSTOP, signal(7), but not after a checkpoint.
      [&] {
        epoll_event got;
        CHECK_EQ(epoll_wait(set, &got, 1, -1), 1);
      },
      [&] {
        epoll_event got;
        sigset_t others = usr1;
        sigaddset(&others, SIGUSR2);
        CHECK_EQ(epoll_pwait(set, &got, 1, -1, &others), 1);
      },
      [&] { CHECK_EQ(sigwaitinfo(&usr1, nullptr), SIGUSR1); },
      [&] {
        fd_set set_of_one;
        FD_ZERO(&set_of_one);
        FD_SET(event, &set_of_one);
        timeval limit = {100'000, 0};
        CHECK_EQ(select(event + 1, &set_of_one, nullptr, nullptr, &limit), 1);
      },
      Naps([] { CHECK(nanosleep(&kNapTime, nullptr) == 0); }),
      Naps([] {
        timespec rest;
        CHECK(nanosleep(&kNapTime, &rest) == 0);
      }),
      Naps([] {
        // The kernel writes what is left over what was asked for.
        timespec time = kNapTime;
        CHECK(nanosleep(&time, &time) == 0);
      }),
      Naps([] { CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &kNapTime, nullptr) == 0); }),
      Naps([] {
        timespec date = Now();
        date.tv_nsec += kNap * 1'000'000;
        date.tv_sec += date.tv_nsec / 1'000'000'000;
        date.tv_nsec %= 1'000'000'000;
        CHECK(Futex(FUTEX_WAIT_BITSET, &date) == -1 && errno == ETIMEDOUT);
      }),
      Naps([] { CHECK(Futex(FUTEX_WAIT, &kNapTime) == -1 && errno == ETIMEDOUT); }),
      Naps([] { CHECK_EQ(poll(nullptr, 0, kNap), 0); }),
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
  CHECK(kill(getpid(), SIGUSR1) == 0);
  for (std::thread& thread : threads) {
    thread.join();
  }
}
