// A stopped child stays stopped, one with a second SIGSTOP pending too, and goes on with SIGCONT.
#include <signal.h>
#include <sys/syscall.h>

#include "target.h"

namespace {

pid_t StoppedChild(int again) {
  const pid_t child = fork();
  if (child == 0) {
    raise(SIGSTOP);
    _exit(7);
  }
  siginfo_t info = {};
  CHECK(waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED | WNOWAIT) == 0);
  for (int i = 0; i < again; ++i) CHECK(syscall(SYS_tkill, child, SIGSTOP) == 0);
  return child;
}

}  // namespace

int main(int, char** argv) {
  const pid_t children[] = {StoppedChild(0), StoppedChild(1)};

  target::PassCheckpoint(argv[1]);

  for (const pid_t child : children) {
    int status = 0;
    CHECK_EQ(waitpid(child, &status, WUNTRACED), child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK_EQ(target::ExitCode(child), 7);
  }
}
