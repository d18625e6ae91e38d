// Resource limits, soft and hard.
#include <sys/resource.h>

#include "target.h"

int main(int, char** argv) {
  const rlimit files = {200, 300};
  const rlimit core = {0, 4096};
  const rlimit stack = {4 << 20, RLIM_INFINITY};
  rlimit hard_stack;
  CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
  CHECK(setrlimit(RLIMIT_CORE, &core) == 0);
  CHECK(getrlimit(RLIMIT_STACK, &hard_stack) == 0);
  const rlimit lower_stack = {stack.rlim_cur, hard_stack.rlim_max};
  CHECK(setrlimit(RLIMIT_STACK, &lower_stack) == 0);

  target::PassCheckpoint(argv[1]);

  rlimit got;
  CHECK(getrlimit(RLIMIT_NOFILE, &got) == 0);
  CHECK_EQ(got.rlim_cur, 200);
  CHECK_EQ(got.rlim_max, 300);
  CHECK(getrlimit(RLIMIT_CORE, &got) == 0);
  CHECK_EQ(got.rlim_cur, 0);
  CHECK_EQ(got.rlim_max, 4096);
  CHECK(getrlimit(RLIMIT_STACK, &got) == 0);
  CHECK_EQ(got.rlim_cur, 4 << 20);
  CHECK_EQ(got.rlim_max, hard_stack.rlim_max);
}
