// signalfd(2) with a signal that waits in it.
#include <signal.h>
#include <sys/signalfd.h>

#include "target.h"

int main(int, char** argv) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGRTMIN + 3);
  CHECK(sigprocmask(SIG_BLOCK, &mask, nullptr) == 0);
  const int fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(sigqueue(getpid(), SIGRTMIN + 3, {.sival_int = 42}) == 0);

  target::PassCheckpoint(argv[1]);

  signalfd_siginfo got;
  CHECK_EQ(read(fd, &got, sizeof(got)), sizeof(got));
  CHECK_EQ(got.ssi_signo, SIGRTMIN + 3);
  CHECK_EQ(got.ssi_int, 42);
  CHECK(read(fd, &got, sizeof(got)) == -1 && errno == EAGAIN);
  CHECK(kill(getpid(), SIGUSR1) == 0);
  CHECK_EQ(read(fd, &got, sizeof(got)), sizeof(got));
  CHECK_EQ(got.ssi_signo, SIGUSR1);
}
