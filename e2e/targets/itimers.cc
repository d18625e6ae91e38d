// setitimer(2): a periodic real timer that goes on ticking, a far virtual one, and alarm(2)'s rest.
#include <signal.h>
#include <sys/time.h>

#include "target.h"

namespace {
volatile sig_atomic_t ticks = 0;
}

int main(int, char** argv) {
  struct sigaction action = {};
  action.sa_handler = [](int) { ticks = ticks + 1; };
  CHECK(sigaction(SIGALRM, &action, nullptr) == 0);
  const itimerval periodic = {{0, 20'000}, {0, 20'000}};
  CHECK(setitimer(ITIMER_REAL, &periodic, nullptr) == 0);
  const itimerval far = {{7, 0}, {5000, 0}};
  CHECK(setitimer(ITIMER_VIRTUAL, &far, nullptr) == 0);

  target::PassCheckpoint(argv[1]);

  const int before = ticks;
  for (int i = 0; i < 1000 && ticks < before + 3; i++) {
    target::Sleep(5);
  }
  CHECK(ticks >= before + 3);
  itimerval left;
  CHECK(getitimer(ITIMER_REAL, &left) == 0);
  CHECK_EQ(left.it_interval.tv_usec, 20'000);
  CHECK(getitimer(ITIMER_VIRTUAL, &left) == 0);
  CHECK_EQ(left.it_interval.tv_sec, 7);
  CHECK(left.it_value.tv_sec > 4000 && left.it_value.tv_sec <= 5000);
  CHECK(getitimer(ITIMER_PROF, &left) == 0);
  CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_usec == 0);
}
