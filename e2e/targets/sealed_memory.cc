// Memory that can neither be unmapped nor protected otherwise any more (mseal(2)).
#include <sys/mman.h>
#include <sys/syscall.h>

#include "target.h"

int main(int, char** argv) {
  constexpr long kMseal = 462;
  constexpr size_t kBytes = 3 * 4096;
  void* const area =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(area, 'x', kBytes);
  if (syscall(kMseal, area, kBytes, 0) != 0) {
    target::PassCheckpoint(argv[1]);
    std::printf("mseal is missing here (Linux 6.10)\n");
    return 77;
  }

  target::PassCheckpoint(argv[1]);

  CHECK(munmap(area, kBytes) != 0 && errno == EPERM);
  CHECK(mprotect(area, 4096, PROT_READ) != 0 && errno == EPERM);
  CHECK_EQ(static_cast<char*>(area)[kBytes - 1], 'x');
}
