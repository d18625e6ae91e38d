// Scheduling: nice value and policy of each thread. (Which processors it may use is for the node to say.)
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "target.h"

int main(int, char** argv) {
  std::atomic<bool> set = false;
  std::atomic<bool> go = false;
  CHECK(setpriority(PRIO_PROCESS, 0, 5) == 0);
  std::thread batch([&] {
    const sched_param parameters = {};
    CHECK(sched_setscheduler(0, SCHED_BATCH, &parameters) == 0);
    CHECK(setpriority(PRIO_PROCESS, 0, 9) == 0);
    set = true;
    while (!go) {
      target::Sleep(1);
    }
    CHECK_EQ(sched_getscheduler(0), SCHED_BATCH);
    CHECK_EQ(getpriority(PRIO_PROCESS, 0), 9);
  });
  while (!set) {
    target::Sleep(1);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(sched_getscheduler(0), SCHED_OTHER);
  CHECK_EQ(getpriority(PRIO_PROCESS, 0), 5);
  go = true;
  batch.join();
}
