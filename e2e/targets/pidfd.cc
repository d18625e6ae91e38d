// pidfds: of the process itself, of a child that lives, of one that has ended, of one that is dead and gone.
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "target.h"

namespace {

int Open(pid_t pid, unsigned flags) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, flags));
}

long Signal(int pidfd, int signal) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0);
}

bool Ended(int pidfd) {
  pollfd waiting = {.fd = pidfd, .events = POLLIN, .revents = 0};
  CHECK(poll(&waiting, 1, 0) >= 0);
  return (waiting.revents & POLLIN) != 0;
}

pid_t Child() {
  const pid_t child = fork();
  if (child != 0) return child;
  while (true) pause();
}

ino_t Inode(int fd) {
  struct stat st = {};
  CHECK(fstat(fd, &st) == 0);
  return st.st_ino;
}

}  // namespace

int main(int, char** argv) {
  const pid_t living = Child(), zombie = Child(), gone = Child();
  const int self = Open(getpid(), 0), of_living = Open(living, O_NONBLOCK), again = Open(living, 0);
  const int of_zombie = Open(zombie, 0), of_gone = Open(gone, 0), twin = Open(gone, 0);
  CHECK(self >= 0 && of_living >= 0 && again >= 0 && of_zombie >= 0 && of_gone >= 0 && twin >= 0);
  CHECK(kill(zombie, SIGTERM) == 0 && kill(gone, SIGTERM) == 0);
  CHECK_EQ(target::ExitCode(gone), 128 + SIGTERM);
  while (!Ended(of_zombie)) target::Sleep(1);
  const bool are_told_apart = Inode(of_gone) != Inode(of_living);  // Linux 6.9
  target::PassCheckpoint(argv[1]);
  CHECK_EQ(Signal(self, 0), 0);
  CHECK(!Ended(of_living) && Ended(of_zombie) && Ended(of_gone) && Ended(twin));
  CHECK(fcntl(of_living, F_GETFL) & O_NONBLOCK);
  CHECK(!(fcntl(again, F_GETFL) & O_NONBLOCK));
  CHECK(Signal(of_gone, 0) < 0 && errno == ESRCH);
  CHECK_EQ(Inode(of_gone), Inode(twin));
  CHECK_EQ(Inode(of_living), Inode(again));
  CHECK_EQ(Inode(of_gone) != Inode(of_living), are_told_apart);
  siginfo_t info = {};
  CHECK(waitid(P_PIDFD, static_cast<id_t>(of_zombie), &info, WEXITED) == 0);
  CHECK_EQ(info.si_pid, zombie);
  CHECK_EQ(info.si_status, SIGTERM);
  CHECK_EQ(Signal(of_living, SIGKILL), 0);
  CHECK_EQ(target::ExitCode(living), 128 + SIGKILL);
  CHECK(Ended(again));
}
