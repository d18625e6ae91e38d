// Sessions whose leaders are gone, with members below several parents; and a group that its leader has left.
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <vector>

#include "target.h"

namespace {

struct Ids {
  pid_t parent, group, session;
  bool operator==(const Ids&) const = default;
};

// A child waits for its end, or for its turn; what it has been is compared in the end.
void Child(const std::string& folder) {
  const Ids before = {getppid(), getpgid(0), getsid(0)};
  target::Touch(folder + "/child-" + std::to_string(getpid()));
  target::WaitFor(folder + "/go");
  const Ids now = {getppid(), getpgid(0), getsid(0)};
  _exit(now == before ? 0 : 1);
}

pid_t Fork(unsigned long flags = 0) {
  return static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1];
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  const auto tell = [&](pid_t pid) { CHECK(write(pipes[1], &pid, sizeof(pid)) == sizeof(pid)); };

  // A daemon: its session's leader has ended, and it is ours.
  const pid_t starter = Fork();
  if (starter == 0) {
    const pid_t leader = Fork();
    if (leader == 0) {
      CHECK(setsid() > 0);
      const pid_t daemon = Fork();
      if (daemon == 0) {
        while (getppid() == getpgid(0)) target::Sleep(1);
        Child(folder);
      }
      tell(daemon);
      _exit(0);
    }
    // One of the same session, by a leader that is gone, is a child of the starter.
    const pid_t second = Fork();
    if (second == 0) {
      CHECK(setsid() > 0);
      const pid_t brother = Fork(CLONE_PARENT);
      if (brother == 0) Child(folder);
      tell(brother);
      _exit(0);
    }
    CHECK_EQ(target::ExitCode(leader), 0);
    CHECK_EQ(target::ExitCode(second), 0);
    CHECK(setsid() > 0);
    target::Touch(folder + "/child-" + std::to_string(getpid()));
    target::WaitFor(folder + "/go");
    CHECK_EQ(getsid(0), getpid());
    int status = 0;
    CHECK(wait(&status) > 0);
    _exit(status == 0 ? 0 : 1);
  }
  // A group whose leader went to another one.
  const pid_t head = Fork();
  if (head == 0) {
    CHECK(setpgid(0, 0) == 0);
    const pid_t member = Fork();
    if (member == 0) Child(folder);
    target::WaitFor(folder + "/child-" + std::to_string(member));
    CHECK(setpgid(0, getpgid(getppid())) == 0);
    const pid_t group = getpgid(0);
    target::Touch(folder + "/child-" + std::to_string(getpid()));
    target::WaitFor(folder + "/go");
    CHECK_EQ(getpgid(0), group);
    _exit(target::ExitCode(member));
  }
  std::vector<pid_t> children = {starter, head};
  pid_t told[2];
  CHECK(read(pipes[0], &told[0], sizeof(pid_t)) == sizeof(pid_t));
  CHECK(read(pipes[0], &told[1], sizeof(pid_t)) == sizeof(pid_t));
  for (const pid_t pid : {starter, head, told[0], told[1]}) {
    target::WaitFor(folder + "/child-" + std::to_string(pid));
  }

  target::PassCheckpoint(argv[1]);

  for (int status = 0; wait(&status) > 0;) CHECK_EQ(status, 0);
}
