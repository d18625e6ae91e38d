// Children whose end is told to their parent by another signal than SIGCHLD, or by none (clone(2)).
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

#include "target.h"

namespace {

volatile sig_atomic_t got = 0;

pid_t Clone(int signal, const std::string& go) {
  const auto child = static_cast<pid_t>(syscall(SYS_clone, signal, 0, 0, 0, 0));
  if (child == 0) {
    target::WaitFor(go);
    _exit(3);
  }
  return child;
}

void CheckEnd(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, WNOHANG) == -1 && errno == ECHILD);  // for those without SIGCHLD
  CHECK_EQ(waitpid(child, &status, __WCLONE), child);
  CHECK_EQ(WEXITSTATUS(status), 3);
}

}  // namespace

int main(int, char** argv) {
  signal(SIGUSR1, [](int) { got = got + 1; });
  const pid_t silent = Clone(0, target::In(argv[1], "go"));
  const pid_t loud = Clone(SIGUSR1, target::In(argv[1], "go"));

  target::PassCheckpoint(argv[1]);

  CheckEnd(silent);
  CheckEnd(loud);
  CHECK_EQ(got, 1);
}
