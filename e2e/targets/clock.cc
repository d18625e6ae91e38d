// The clocks of the vdso go on, and never back.
#include <sys/time.h>

#include "target.h"

int main(int, char** argv) {
  timespec before;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &before) ==
        0);  // glibc holds the vdso's address from here on
  timeval wall_before;
  CHECK(gettimeofday(&wall_before, nullptr) == 0);

  target::PassCheckpoint(argv[1]);

  timespec after;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
  CHECK(after.tv_sec > before.tv_sec ||
        (after.tv_sec == before.tv_sec && after.tv_nsec >= before.tv_nsec));
  timeval wall_after;
  CHECK(gettimeofday(&wall_after, nullptr) == 0);
  CHECK(wall_after.tv_sec >= wall_before.tv_sec && wall_after.tv_sec < wall_before.tv_sec + 600);
  CHECK(time(nullptr) >= wall_before.tv_sec);
}
