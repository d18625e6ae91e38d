// A machine's console and one of its virtual terminals, with settings of the program's own; another one controls the
// session of a child.
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "target.h"

namespace {

int OpenDevice(const std::string& path, dev_t device) {
  if (mknod(path.c_str(), S_IFCHR | 0600, device) != 0) return -1;
  return open(path.c_str(), O_RDWR | O_NOCTTY | O_NONBLOCK);
}

dev_t DeviceOf(int fd) {
  struct stat status;
  CHECK(fstat(fd, &status) == 0 && S_ISCHR(status.st_mode));
  return status.st_rdev;
}

void Controls(int fd) {
  CHECK_EQ(tcgetsid(fd), getpid());
  CHECK_EQ(tcgetpgrp(fd), getpgrp());
}

void Leader(const char* folder, const std::string& path) {
  CHECK(setsid() == getpid());
  const int fd = open(path.c_str(), O_RDWR | O_NONBLOCK);
  CHECK(fd >= 0);
  Controls(fd);
  target::Touch(target::In(folder, "led"));
  target::WaitFor(target::In(folder, "go"));
  Controls(fd);
  _exit(0);
}

}  // namespace

int main(int, char** argv) {
  const dev_t console = makedev(5, 1), terminal = makedev(4, 60);
  const int fds[] = {OpenDevice(target::In(argv[1], "console"), console),
                     OpenDevice(target::In(argv[1], "tty60"), terminal)};
  if (fds[0] < 0 || fds[1] < 0) {
    target::PassCheckpoint(argv[1]);
    std::printf("no terminals of the machine here\n");
    return 77;
  }
  termios before, own, now;
  CHECK(tcgetattr(fds[1], &before) == 0);
  own = before;
  own.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  own.c_cc[VMIN] = 17;
  CHECK(tcsetattr(fds[1], TCSANOW, &own) == 0);
  const std::string other = target::In(argv[1], "tty59");
  CHECK(mknod(other.c_str(), S_IFCHR | 0600, makedev(4, 59)) == 0);
  const pid_t leader = fork();
  if (leader == 0) Leader(argv[1], other);
  target::WaitFor(target::In(argv[1], "led"));

  target::PassCheckpoint(argv[1]);

  CHECK(DeviceOf(fds[0]) == console && DeviceOf(fds[1]) == terminal);
  CHECK(tcgetattr(fds[1], &now) == 0 && tcsetattr(fds[1], TCSANOW, &before) == 0);
  CHECK_EQ(now.c_lflag, own.c_lflag);
  CHECK_EQ(now.c_cc[VMIN], 17);
  CHECK((fcntl(fds[1], F_GETFL) & O_NONBLOCK) != 0);
  CHECK_EQ(target::ExitCode(leader), 0);
}
