// Shared memory and a semaphore that have names (shm_open(3), sem_open(3)): files in /dev/shm, which a container
// has from its pod.
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "target.h"

int main(int, char** argv) {
  const std::string name = "/stasis-" + std::to_string(getpid());
  const int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0640);
  CHECK(fd >= 0);
  CHECK_EQ(ftruncate(fd, 3 * 4096), 0);
  char* memory =
      static_cast<char*>(mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  CHECK(memory != MAP_FAILED);
  memcpy(memory + 4096, "kept", 5);
  sem_t* semaphore = sem_open((name + "-sem").c_str(), O_CREAT | O_EXCL, 0600, 2);
  CHECK(semaphore != SEM_FAILED);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(strcmp(memory + 4096, "kept"), 0);
  memory[0] = 'x';
  char byte = 0;
  CHECK_EQ(pread(fd, &byte, 1, 0), 1);
  CHECK_EQ(byte, 'x');
  const int again = shm_open(name.c_str(), O_RDONLY, 0);
  struct stat st = {}, other = {};
  CHECK_EQ(fstat(fd, &st), 0);
  CHECK_EQ(fstat(again, &other), 0);
  CHECK_EQ(st.st_ino, other.st_ino);
  CHECK_EQ(st.st_mode & 0777, 0640);
  int value = 0;
  CHECK_EQ(sem_getvalue(semaphore, &value), 0);
  CHECK_EQ(value, 2);
  CHECK_EQ(sem_trywait(semaphore), 0);
  CHECK_EQ(shm_unlink(name.c_str()), 0);
  CHECK_EQ(sem_unlink((name + "-sem").c_str()), 0);
}
