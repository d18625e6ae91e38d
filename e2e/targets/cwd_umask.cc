// The working directory and the umask.
#include <sys/stat.h>

#include "target.h"

int main(int, char** argv) {
  const std::string folder = target::In(argv[1], "inner");
  CHECK(mkdir(folder.c_str(), 0755) == 0);
  CHECK(chdir(folder.c_str()) == 0);
  umask(0137);

  target::PassCheckpoint(argv[1]);

  char got[4096];
  CHECK(getcwd(got, sizeof(got)) != nullptr && folder == got);
  CHECK_EQ(umask(0), 0137);
}
