// A named semaphore whose name is gone, as every lock of Python's multiprocessing: two processes map a
// deleted file that none of them has open.
#include <semaphore.h>
#include <sys/mman.h>

#include "target.h"

int main(int, char** argv) {
  const std::string name = "/stasis-e2e-" + std::to_string(getpid());
  sem_t* const semaphore = sem_open(name.c_str(), O_CREAT | O_EXCL, 0600, 3);
  CHECK(semaphore != SEM_FAILED);
  CHECK(sem_unlink(name.c_str()) == 0);
  const pid_t child = fork();
  if (child == 0) {
    target::WaitFor(target::In(argv[1], "go"));
    CHECK(sem_post(semaphore) == 0);
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(child), 0);
  int value = 0;
  CHECK(sem_getvalue(semaphore, &value) == 0);
  CHECK_EQ(value, 4);
}
