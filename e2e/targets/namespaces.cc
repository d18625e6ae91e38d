// Namespaces of its own that a process holds open.
#include <sys/stat.h>

#include "target.h"

namespace {

bool IsOwn(int fd, const char* path) {
  struct stat held = {}, own = {};
  CHECK(fstat(fd, &held) == 0 && stat(path, &own) == 0);
  return held.st_dev == own.st_dev && held.st_ino == own.st_ino;
}

}  // namespace

int main(int, char** argv) {
  const char* const net = "/proc/self/ns/net";
  const char* const uts = "/proc/self/ns/uts";
  const int first = open(net, O_RDONLY | O_CLOEXEC), second = open(uts, O_RDONLY);
  CHECK(first >= 0 && second >= 0);
  target::PassCheckpoint(argv[1]);
  CHECK(IsOwn(first, net) && IsOwn(second, uts));
  CHECK_EQ(fcntl(first, F_GETFD), FD_CLOEXEC);
}
