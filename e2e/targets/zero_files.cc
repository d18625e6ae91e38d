// Anonymous shared memory that is open as a file (/proc/PID/map_files), mapped again by that, and privately.
#include <sys/mman.h>

#include "target.h"

namespace {

constexpr long kPage = 4096;

char* Map(int flags, int fd, long offset) {
  void* const at = mmap(nullptr, 5 * kPage, PROT_READ | PROT_WRITE, flags, fd, offset);
  CHECK(at != MAP_FAILED);
  return static_cast<char*>(at);
}

int OpenMapped(const char* at) {
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
                reinterpret_cast<unsigned long>(at),
                reinterpret_cast<unsigned long>(at) + 5 * kPage);
  return open(path, O_RDWR);
}

}  // namespace

int main(int, char** argv) {
  char* const first = Map(MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const int fd = OpenMapped(first);
  if (fd < 0) {
    target::PassCheckpoint(argv[1]);
    std::printf("no CAP_CHECKPOINT_RESTORE\n");
    return 77;
  }
  strcpy(first, "first");
  strcpy(first + kPage, "second");
  char* const again = Map(MAP_SHARED, fd, kPage);
  char* const own = Map(MAP_PRIVATE, fd, kPage);
  own[kPage] = 'o';
  char* const alone = Map(MAP_SHARED | MAP_ANONYMOUS, -1, 0);  // open, and mapped no more
  const int closed = OpenMapped(alone);
  strcpy(alone, "alone");
  CHECK(munmap(alone, 5 * kPage) == 0 && ftruncate(closed, 100) == 0);
  CHECK_EQ(lseek(closed, 3, SEEK_SET), 3);

  target::PassCheckpoint(argv[1]);

  CHECK(strcmp(first, "first") == 0 && strcmp(again, "second") == 0 && strcmp(own, "second") == 0);
  CHECK(own[kPage] == 'o' && first[2 * kPage] == 0);
  strcpy(again + kPage, "new");
  CHECK(strcmp(first + 2 * kPage, "new") == 0 && own[kPage] == 'o');
  CHECK_EQ(pwrite(fd, "written", 8, 0), 8);
  CHECK(strcmp(first, "written") == 0);
  char got[3] = {};
  CHECK_EQ(read(closed, got, 2), 2);
  CHECK(strcmp(got, "ne") == 0);
  CHECK_EQ(lseek(closed, 0, SEEK_END), 100);
}
