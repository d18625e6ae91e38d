// The login uid, by which the audit system names who started a process.
#include "target.h"

int main(int, char** argv) {
  const int fd = open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "31337", 5) != 5) {
    target::PassCheckpoint(argv[1]);
    std::printf("this process may not set its login uid\n");
    return 77;
  }
  close(fd);

  target::PassCheckpoint(argv[1]);

  CHECK(target::Read("/proc/self/loginuid") == "31337");
}
