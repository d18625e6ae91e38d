// What a process is called: comm, command line, environment, executable, auxiliary vector.
#include <sys/auxv.h>
#include <sys/prctl.h>

#include "target.h"

namespace {

std::string Link(const char* path) {
  char text[4096];
  const ssize_t length = readlink(path, text, sizeof(text));
  CHECK(length > 0);
  return std::string(text, static_cast<size_t>(length));
}

}  // namespace

int main(int, char** argv) {
  CHECK(prctl(PR_SET_NAME, "odd ) name") == 0);
  strncpy(argv[0], "renamed", strlen(argv[0]));
  const std::string command_line = target::Read("/proc/self/cmdline");
  const std::string environment = target::Read("/proc/self/environ");
  const std::string auxv = target::Read("/proc/self/auxv");
  const std::string program = Link("/proc/self/exe");
  const std::string root = Link("/proc/self/root");

  target::PassCheckpoint(argv[1]);

  CHECK(target::Read("/proc/self/comm") == "odd ) name\n");
  CHECK(target::Read("/proc/self/cmdline") == command_line);
  CHECK(target::Read("/proc/self/environ") == environment);
  CHECK(target::Read("/proc/self/auxv") == auxv);
  CHECK(Link("/proc/self/exe") == program);
  CHECK(Link("/proc/self/root") == root);
}
