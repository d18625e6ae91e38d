// Signals: actions with flags and masks, ignored ones, and queues of blocked ones with their
// values, to the process and to one thread.
#include <signal.h>
#include <sys/syscall.h>

#include <vector>

#include "target.h"

namespace {

volatile sig_atomic_t order[8];
volatile sig_atomic_t arrived = 0;
volatile sig_atomic_t on_alternate = 0;
std::vector<char> alternate_stack(32768);

void Handle(int, siginfo_t* info, void*) {
  const char here = 0;
  on_alternate =
      &here >= alternate_stack.data() && &here < alternate_stack.data() + alternate_stack.size();
  order[arrived] = info->si_value.sival_int;
  arrived = arrived + 1;
}

}  // namespace

int main(int, char** argv) {
  const stack_t stack = {
      .ss_sp = alternate_stack.data(), .ss_flags = 0, .ss_size = alternate_stack.size()};
  CHECK(sigaltstack(&stack, nullptr) == 0);
  struct sigaction action = {};
  action.sa_sigaction = Handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER;
  sigaddset(&action.sa_mask, SIGHUP);
  CHECK(sigaction(SIGRTMIN + 1, &action, nullptr) == 0);
  CHECK(signal(SIGUSR2, SIG_IGN) != SIG_ERR);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + 1);
  sigaddset(&mask, SIGTERM);
  CHECK(sigprocmask(SIG_SETMASK, &mask, nullptr) == 0);
  for (int i = 1; i <= 3; i++) {
    CHECK(sigqueue(getpid(), SIGRTMIN + 1, {.sival_int = i}) == 0);
  }
  CHECK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGTERM) == 0);

  target::PassCheckpoint(argv[1]);

  struct sigaction got;
  CHECK(sigaction(SIGRTMIN + 1, nullptr, &got) == 0);
  CHECK(got.sa_sigaction == Handle);
  constexpr int kRestorer = 0x04000000;  // SA_RESTORER, which glibc adds and shows
  CHECK_EQ(got.sa_flags & ~kRestorer, SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER);
  CHECK_EQ(sigismember(&got.sa_mask, SIGHUP), 1);
  CHECK_EQ(sigismember(&got.sa_mask, SIGINT), 0);
  CHECK(sigaction(SIGUSR2, nullptr, &got) == 0 && got.sa_handler == SIG_IGN);
  siginfo_t info;
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  const timespec now = {};
  constexpr size_t kKernelMaskBytes = 8;
  // Not sigtimedwait(3): glibc shows SI_TKILL as SI_USER.
  CHECK_EQ(syscall(SYS_rt_sigtimedwait, &term, &info, &now, kKernelMaskBytes), SIGTERM);
  CHECK_EQ(info.si_code, SI_TKILL);
  CHECK_EQ(info.si_pid, getpid());
  CHECK_EQ(arrived, 0);
  CHECK(sigprocmask(SIG_UNBLOCK, &mask, nullptr) == 0);
  CHECK_EQ(arrived, 3);
  CHECK_EQ(on_alternate, 1);
  int sum = 0;
  for (int i = 0; i < 3; i++) {
    sum = sum * 10 + order[i];
  }
  // SA_NODEFER: each next signal interrupts the handler of the one before, at its first
  // instruction.
  CHECK_EQ(sum, 321);
}
