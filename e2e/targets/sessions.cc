// Sessions and process groups: a child that leads a group, one that leads a session, one within it.
#include "target.h"

namespace {

struct Ids {
  pid_t pid, parent, group, session;
};

Ids Own() { return {getpid(), getppid(), getpgid(0), getsid(0)}; }

void Child(const std::string& folder, const char* name) {
  const Ids before = Own();
  target::Touch(folder + "/" + name);
  target::WaitFor(folder + "/go");
  const Ids after = Own();
  _exit(memcmp(&before, &after, sizeof(before)) == 0 ? 0 : 1);
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1];
  const Ids before = Own();
  const pid_t grouped = fork();
  if (grouped == 0) {
    CHECK(setpgid(0, 0) == 0);
    Child(folder, "grouped");
  }
  const pid_t leader = fork();
  if (leader == 0) {
    CHECK(setsid() > 0);
    const pid_t member = fork();
    if (member == 0) {
      Child(folder, "member");
    }
    target::WaitFor(folder + "/member");
    const Ids mine = Own();
    target::Touch(folder + "/leader");
    target::WaitFor(folder + "/go");
    const Ids now = Own();
    CHECK(memcmp(&mine, &now, sizeof(mine)) == 0);
    CHECK_EQ(getsid(member), getpid());
    _exit(target::ExitCode(member));
  }
  target::WaitFor(folder + "/grouped");
  target::WaitFor(folder + "/leader");

  target::PassCheckpoint(argv[1]);

  const Ids after = Own();
  CHECK_EQ(after.pid, before.pid);
  CHECK_EQ(after.group, before.group);
  CHECK_EQ(after.session, before.session);
  CHECK_EQ(target::ExitCode(grouped), 0);
  CHECK_EQ(target::ExitCode(leader), 0);
}
