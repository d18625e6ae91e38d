// Private pages that a parent and its child have alike are one page in memory until one writes.
#include <sys/mman.h>

#include "target.h"

namespace {

constexpr size_t kPage = 4096, kPages = 256;

// The area's line `key` in /proc/self/smaps, KiB.
long Smaps(const char* area, const char* key) {
  FILE* file = fopen("/proc/self/smaps", "re");
  CHECK(file != nullptr);
  char line[4096], start[32];
  snprintf(start, sizeof(start), "%lx-", reinterpret_cast<unsigned long>(area));
  bool found = false;
  long kib = -1;
  while (kib < 0 && fgets(line, sizeof(line), file) != nullptr) {
    found = found || strncmp(line, start, strlen(start)) == 0;
    if (found && strncmp(line, key, strlen(key)) == 0) kib = atol(line + strlen(key) + 1);
  }
  fclose(file);
  return kib;
}

// Page 1 is the child's own, page 2 it gave back, page 3 it filled when its parent had it no more.
void Expect(const char* area, bool child) {
  for (size_t i = 0; i < kPages; i++) {
    const char mine = child ? "pc\0n"[i % 4] : "ppp\0"[i % 4];
    CHECK_EQ(area[i * kPage], i < 4 ? mine : 'p');
    CHECK_EQ(area[i * kPage + kPage - 1], i < 4 ? mine : 'p');
  }
  CHECK_EQ(Smaps(area, "Shared_Dirty:"), static_cast<long>((kPages - 3) * kPage / 1024));
}

}  // namespace

int main(int, char** argv) {
  // With guards, so that it is an area of its own.
  char* area = static_cast<char*>(mmap(nullptr, (kPages + 2) * kPage, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(area != MAP_FAILED);
  CHECK_EQ(mprotect(area, kPage, PROT_NONE), 0);
  area += kPage;
  CHECK_EQ(mprotect(area + kPages * kPage, kPage, PROT_NONE), 0);
  CHECK_EQ(madvise(area, kPages * kPage, MADV_NOHUGEPAGE), 0);
  memset(area, 'p', kPages * kPage);
  CHECK_EQ(madvise(area + 3 * kPage, kPage, MADV_DONTNEED), 0);
  const pid_t child = fork();
  if (child == 0) {
    memset(area + kPage, 'c', kPage);
    CHECK_EQ(madvise(area + 2 * kPage, kPage, MADV_DONTNEED), 0);
    memset(area + 3 * kPage, 'n', kPage);
    target::Touch(target::In(argv[1], "child"));
    target::WaitFor(target::In(argv[1], "go"));
    Expect(area, true);
    target::Touch(target::In(argv[1], "child checked"));
    target::WaitFor(target::In(argv[1], "parent checked"));
    area[5 * kPage] = 'x';
    _exit(0);
  }
  target::WaitFor(target::In(argv[1], "child"));
  target::PassCheckpoint(argv[1]);
  target::WaitFor(target::In(argv[1], "go"));
  Expect(area, false);
  target::WaitFor(target::In(argv[1], "child checked"));
  target::Touch(target::In(argv[1], "parent checked"));
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(area[5 * kPage], 'p');
}
