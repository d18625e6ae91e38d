// A machine's console and one of its virtual terminals, with settings of the program's own.
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

  target::PassCheckpoint(argv[1]);

  CHECK(DeviceOf(fds[0]) == console && DeviceOf(fds[1]) == terminal);
  CHECK(tcgetattr(fds[1], &now) == 0 && tcsetattr(fds[1], TCSANOW, &before) == 0);
  CHECK_EQ(now.c_lflag, own.c_lflag);
  CHECK_EQ(now.c_cc[VMIN], 17);
  CHECK((fcntl(fds[1], F_GETFL) & O_NONBLOCK) != 0);
}
