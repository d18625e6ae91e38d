// memfd_create(2): shared and private mappings, also without a descriptor, holes, seals.
#include <sys/mman.h>
#include <sys/stat.h>

#include "target.h"

namespace {

constexpr size_t kBytes = 1 << 20;

char* Map(int fd, int prot, int flags) {
  void* const memory = mmap(nullptr, kBytes, prot, flags, fd, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

}  // namespace

int main(int, char** argv) {
  const int fd = memfd_create("box", MFD_ALLOW_SEALING);
  CHECK(fd >= 0 && ftruncate(fd, kBytes) == 0);
  char* const shared = Map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
  strcpy(shared + 5000, "shared");
  char* const own = Map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  strcpy(own + 9000, "own");
  CHECK_EQ(lseek(fd, 5000, SEEK_SET), 5000);

  const int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
  CHECK_EQ(write(sealed, "never again", 11), 11);
  CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK) == 0);

  const int closed = memfd_create("closed", 0);  // lives by its mapping alone
  CHECK(closed >= 0 && ftruncate(closed, kBytes) == 0);
  char* const nameless = Map(closed, PROT_READ | PROT_WRITE, MAP_SHARED);
  strcpy(nameless, "mapped");
  close(closed);

  const pid_t child = fork();
  if (child == 0) {
    target::WaitFor(target::In(argv[1], "go"));
    strcpy(nameless + 100, "child");
    strcpy(shared + 20000, "child");
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(child), 0);
  CHECK(strcmp(nameless, "mapped") == 0 && strcmp(nameless + 100, "child") == 0);
  CHECK(strcmp(shared + 5000, "shared") == 0 && strcmp(shared + 20000, "child") == 0);
  CHECK(strcmp(own + 5000, "shared") == 0 && strcmp(own + 9000, "own") == 0);
  CHECK_EQ(shared[9000], 0);
  char got[8] = {};
  CHECK_EQ(read(fd, got, 6), 6);
  CHECK(strcmp(got, "shared") == 0);
  struct stat status;
  CHECK(fstat(fd, &status) == 0);
  CHECK_EQ(status.st_size, kBytes);
  CHECK(status.st_blocks <= 8 * 16);  // the holes are holes
  CHECK_EQ(fcntl(fd, F_GET_SEALS), 0);
  CHECK_EQ(fcntl(sealed, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK);
  CHECK(write(sealed, "x", 1) == -1 && errno == EPERM);
  CHECK(target::Read("/proc/self/maps").find("/memfd:closed (deleted)") != std::string::npos);
}
