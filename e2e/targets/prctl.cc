// Settings made by prctl(2): subreaper, death signal, dumpable, timer slack, no_new_privs.
#include <signal.h>
#include <sys/prctl.h>

#include "target.h"

int main(int, char** argv) {
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    target::PassCheckpoint(argv[1]);
    int signal = 0;
    CHECK(prctl(PR_GET_PDEATHSIG, &signal) == 0);
    CHECK_EQ(signal, SIGUSR1);
    CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    _exit(0);
  }
  target::WaitFor(target::In(argv[1], "go"));

  int subreaper = 0;
  CHECK(prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0);
  CHECK_EQ(subreaper, 1);
  CHECK_EQ(prctl(PR_GET_DUMPABLE), 0);
  CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
  CHECK_EQ(target::ExitCode(child), 0);
}
