// A process with a root directory of its own, and files and a socket that it opened there.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "target.h"

namespace {

using Name = int (*)(int, const sockaddr*, socklen_t);

// bind(2) or connect(2).
int Socket(Name name, const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  CHECK(path.size() < sizeof(address.sun_path));
  memcpy(address.sun_path, path.data(), path.size());
  CHECK(name(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  const std::string root = target::In(argv[1], "root");
  CHECK(mkdir(root.c_str(), 0755) == 0 && mkdir((root + "/place").c_str(), 0755) == 0);
  const int outside = open(argv[1], O_PATH | O_DIRECTORY);
  int ready[2];
  CHECK(outside >= 0 && pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    if (chroot(root.c_str()) != 0) _exit(errno == EPERM ? 77 : 1);
    CHECK(chdir("/place") == 0);
    const int file = open("/place/file", O_RDWR | O_CREAT, 0600);
    const int doomed = open("/doomed", O_RDWR | O_CREAT, 0600);
    CHECK(file >= 0 && write(file, "inside", 6) == 6);
    CHECK(doomed >= 0 && unlink("/doomed") == 0);
    const int listener = Socket(bind, "/place/socket");
    CHECK(listen(listener, 1) == 0);
    CHECK_EQ(write(ready[1], "x", 1), 1);
    while (faccessat(outside, "go", F_OK, 0) != 0) target::Sleep(2);
    char text[4096] = {};
    CHECK(getcwd(text, sizeof(text)) != nullptr && strcmp(text, "/place") == 0);
    CHECK(access("/place/file", F_OK) == 0 && access("/proc/self", F_OK) != 0);
    CHECK_EQ(pread(file, text, sizeof(text), 0), 6);
    CHECK(memcmp(text, "inside", 6) == 0);
    CHECK_EQ(write(doomed, "gone", 4), 4);
    CHECK(accept(listener, nullptr, nullptr) >= 0);
    _exit(0);
  }
  CHECK(close(ready[1]) == 0);
  char byte;
  if (read(ready[0], &byte, 1) != 1) {
    const int code = target::ExitCode(child);
    if (code == 77) std::printf("chroot(2) needs CAP_SYS_CHROOT\n");
    return code;
  }
  CHECK(close(ready[0]) == 0);
  target::PassCheckpoint(argv[1]);
  Socket(connect, root + "/place/socket");
  CHECK_EQ(target::ExitCode(child), 0);
}
