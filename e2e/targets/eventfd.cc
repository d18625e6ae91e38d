// eventfd(2) with counters above 32 bits, as a counter and as a semaphore.
#include <sys/eventfd.h>

#include <cstdint>

#include "target.h"

int main(int, char** argv) {
  constexpr std::uint64_t kBig = 0x1234567890abcdefU;
  const int counter = eventfd(7, EFD_CLOEXEC);
  const int semaphore = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);
  const int empty = eventfd(0, EFD_NONBLOCK);
  CHECK(counter >= 0 && semaphore >= 0 && empty >= 0);
  CHECK_EQ(write(counter, &kBig, sizeof(kBig)), 8);
  const std::uint64_t two = 2;
  CHECK_EQ(write(semaphore, &two, sizeof(two)), 8);

  target::PassCheckpoint(argv[1]);

  std::uint64_t got = 0;
  CHECK_EQ(read(counter, &got, sizeof(got)), 8);
  CHECK(got == kBig + 7);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(read(semaphore, &got, sizeof(got)), 8);
    CHECK_EQ(got, 1);
  }
  CHECK(read(semaphore, &got, sizeof(got)) == -1 && errno == EAGAIN);
  CHECK(read(empty, &got, sizeof(got)) == -1 && errno == EAGAIN);
  CHECK_EQ(fcntl(counter, F_GETFD), FD_CLOEXEC);
}
