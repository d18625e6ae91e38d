// Scheduling: nice value and policy of each thread, and the processor that it bound itself to.
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
    cpu_set_t processors;
    CHECK(sched_getaffinity(0, sizeof(processors), &processors) == 0);
    const bool several = CPU_COUNT(&processors) > 1;
    int last = 0;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &processors)) last = i;
    }
    CPU_ZERO(&processors);
    CPU_SET(last, &processors);
    if (several) CHECK(sched_setaffinity(0, sizeof(processors), &processors) == 0);
    set = true;
    while (!go) {
      target::Sleep(1);
    }
    CPU_ZERO(&processors);
    CHECK(sched_getaffinity(0, sizeof(processors), &processors) == 0);
    CHECK(CPU_COUNT(&processors) == 1 && CPU_ISSET(last, &processors));
    CHECK_EQ(sched_getscheduler(0), SCHED_BATCH);
    CHECK_EQ(getpriority(PRIO_PROCESS, 0), 9);
  });
  while (!set) {
    target::Sleep(1);
  }

  cpu_set_t before, after;
  CHECK(sched_getaffinity(0, sizeof(before), &before) == 0);

  target::PassCheckpoint(argv[1]);

  CHECK(sched_getaffinity(0, sizeof(after), &after) == 0 && CPU_EQUAL(&before, &after));

  CHECK_EQ(sched_getscheduler(0), SCHED_OTHER);
  CHECK_EQ(getpriority(PRIO_PROCESS, 0), 5);
  go = true;
  batch.join();
}
