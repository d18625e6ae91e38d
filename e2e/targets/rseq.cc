// Restartable sequences: the area that glibc registered stays registered, so the kernel goes on
// writing the processor's number into it.
#include <sched.h>
#include <sys/rseq.h>

#include <atomic>
#include <thread>

#include "target.h"

namespace {

unsigned RseqCpu() {
  const auto* area = reinterpret_cast<const struct rseq*>(
      static_cast<const char*>(__builtin_thread_pointer()) + __rseq_offset);
  return *const_cast<const volatile unsigned*>(&area->cpu_id);
}

void Verify() {
  cpu_set_t allowed;
  CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (CPU_ISSET(cpu, &allowed)) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
      CHECK_EQ(RseqCpu(), cpu);
    }
  }
}

}  // namespace

int main(int, char** argv) {
  CHECK(__rseq_size > 0);
  std::atomic<bool> go = false;
  std::thread other([&] {
    while (!go) {
      target::Sleep(1);
    }
    Verify();
  });

  target::PassCheckpoint(argv[1]);

  Verify();
  go = true;
  other.join();
}
