// timer_create(2): ids with a hole, periodic and far timers, signal values, a timer of one thread.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include "target.h"

namespace {

volatile sig_atomic_t ticks = 0;
volatile sig_atomic_t value = 0;

using KernelTimer = int;  // what the system call uses; glibc's timer_t hides it

KernelTimer Create(sigevent event) {
  KernelTimer id = -1;
  CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) == 0);
  return id;
}

void Arm(KernelTimer id, itimerspec times) {
  CHECK(syscall(SYS_timer_settime, id, 0, &times, nullptr) == 0);
}

}  // namespace

int main(int, char** argv) {
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    ticks = ticks + 1;
    value = info->si_value.sival_int;
  };
  CHECK(sigaction(SIGRTMIN, &action, nullptr) == 0);

  sigevent to_process = {};
  to_process.sigev_notify = SIGEV_SIGNAL;
  to_process.sigev_signo = SIGRTMIN;
  to_process.sigev_value.sival_int = 77;
  sigevent quiet = {};
  quiet.sigev_notify = SIGEV_NONE;
  sigevent to_thread = to_process;
  to_thread.sigev_notify = SIGEV_THREAD_ID;
  to_thread._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));

  const KernelTimer periodic = Create(to_process);
  const KernelTimer hole = Create(quiet);
  const KernelTimer far = Create(quiet);
  const KernelTimer threaded = Create(to_thread);
  CHECK(syscall(SYS_timer_delete, hole) == 0);
  Arm(periodic, {{0, 20'000'000}, {0, 20'000'000}});
  Arm(far, {{3, 0}, {4000, 0}});

  target::PassCheckpoint(argv[1]);

  const int before = ticks;
  for (int i = 0; i < 1000 && ticks < before + 3; i++) {
    target::Sleep(5);
  }
  CHECK(ticks >= before + 3);
  CHECK_EQ(value, 77);
  itimerspec left;
  CHECK(syscall(SYS_timer_gettime, hole, &left) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_timer_gettime, far, &left) == 0);
  CHECK_EQ(left.it_interval.tv_sec, 3);
  CHECK(left.it_value.tv_sec > 3500 && left.it_value.tv_sec <= 4000);
  Arm(periodic, {});
  const int quiet_since = ticks;
  Arm(threaded, {.it_interval = {}, .it_value = {0, 1'000'000}});
  for (int i = 0; i < 1000 && ticks == quiet_since; i++) {
    target::Sleep(5);
  }
  CHECK(ticks > quiet_since);
}
