// Processes that share one descriptor table (CLONE_FILES), and one working directory (CLONE_FS).
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "target.h"

namespace {

constexpr int kNumber = 77;

pid_t Fork(unsigned long flags) {
  return static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1];
  const std::string go = folder + "/go-on";
  const pid_t files = Fork(CLONE_FILES);
  if (files == 0) {
    target::WaitFor(go);
    CHECK(fcntl(kNumber, F_GETFD) >= 0);
    CHECK(close(kNumber) == 0);
    _exit(0);
  }
  const pid_t place = Fork(CLONE_FS);
  if (place == 0) {
    target::WaitFor(go);
    CHECK(fcntl(kNumber, F_GETFD) < 0);
    char path[4096];
    CHECK(getcwd(path, sizeof(path)) != nullptr && strcmp(path, "/proc") == 0);
    CHECK_EQ(umask(0), 0123);
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  CHECK(chdir("/proc") == 0);
  umask(0123);
  CHECK_EQ(dup2(0, kNumber), kNumber);
  close(open(go.c_str(), O_CREAT | O_WRONLY, 0666));
  CHECK_EQ(target::ExitCode(files), 0);
  CHECK_EQ(target::ExitCode(place), 0);
  CHECK(fcntl(kNumber, F_GETFD) < 0);
}
