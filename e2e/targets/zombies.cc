// Zombies keep their pid and the way they ended until their parent asks.
#include <signal.h>

#include "target.h"

namespace {

void AwaitZombie(pid_t pid) {
  siginfo_t info;
  CHECK(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0);
}

}  // namespace

int main(int, char** argv) {
  const pid_t exited = fork();
  if (exited == 0) {
    _exit(7);
  }
  const pid_t killed = fork();
  if (killed == 0) {
    raise(SIGKILL);
  }
  AwaitZombie(exited);
  AwaitZombie(killed);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(exited), 7);
  CHECK_EQ(target::ExitCode(killed), 128 + SIGKILL);
  CHECK(waitpid(-1, nullptr, 0) == -1 && errno == ECHILD);
}
