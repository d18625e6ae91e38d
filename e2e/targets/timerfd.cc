// timerfd(2): armed once and far, periodic, disarmed, expired and not read.
#include <poll.h>
#include <sys/timerfd.h>

#include <cstdint>

#include "target.h"

namespace {

int Timer(clockid_t clock, itimerspec times) {
  const int fd = timerfd_create(clock, TFD_NONBLOCK);
  CHECK(fd >= 0);
  CHECK(timerfd_settime(fd, 0, &times, nullptr) == 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  const int far = Timer(CLOCK_MONOTONIC, {.it_interval = {}, .it_value = {1000, 0}});
  const int periodic = Timer(CLOCK_MONOTONIC, {{0, 20'000'000}, {0, 20'000'000}});
  const int disarmed = Timer(CLOCK_REALTIME, {});
  const int expired = Timer(CLOCK_MONOTONIC, {.it_interval = {}, .it_value = {0, 1}});
  pollfd wait = {expired, POLLIN, 0};
  CHECK_EQ(poll(&wait, 1, -1), 1);

  target::PassCheckpoint(argv[1]);

  itimerspec left;
  CHECK(timerfd_gettime(far, &left) == 0);
  CHECK(left.it_value.tv_sec > 800 && left.it_value.tv_sec <= 1000);
  CHECK_EQ(left.it_interval.tv_sec, 0);
  CHECK(timerfd_gettime(periodic, &left) == 0);
  CHECK_EQ(left.it_interval.tv_nsec, 20'000'000);
  wait.fd = periodic;
  std::uint64_t expirations = 0;
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(poll(&wait, 1, 2000), 1);
    CHECK_EQ(read(periodic, &expirations, sizeof(expirations)), 8);
    CHECK(expirations >= 1);
  }
  CHECK(timerfd_gettime(disarmed, &left) == 0);
  CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
  CHECK_EQ(read(expired, &expirations, sizeof(expirations)), 8);
  CHECK_EQ(expirations, 1);
}
