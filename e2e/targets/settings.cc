// Settings that hardly anybody looks at: personality, core dump filter, timer slack of each thread, I/O
// priority, memory-deny-write-execute, the time stamp counter, machine checks, huge pages, merged pages.
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "target.h"

namespace {

constexpr int kSetMdwe = 65;         // PR_SET_MDWE, Linux 6.3
constexpr int kSetMemoryMerge = 67;  // PR_SET_MEMORY_MERGE, Linux 6.4
constexpr int kExceptAdvised = 2;    // PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
constexpr int kBestEffortSeven = 2 << 13 | 7;

void SetFilter(const char* text) {
  const int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(write(fd, text, strlen(text)) > 0);
  close(fd);
}

}  // namespace

int main(int, char** argv) {
  std::atomic<bool> set = false, go = false;
  CHECK(personality(ADDR_NO_RANDOMIZE) != -1);
  CHECK(prctl(PR_SET_TIMERSLACK, 70'000, 0, 0, 0) == 0);
  CHECK(syscall(SYS_ioprio_set, 1, 0, kBestEffortSeven) == 0);
  SetFilter("0x7f");
  const bool has_mdwe = prctl(kSetMdwe, 1, 0, 0, 0) == 0;
  const bool merges = prctl(kSetMemoryMerge, 1, 0, 0, 0) == 0;
  CHECK(prctl(PR_SET_THP_DISABLE, 1, kExceptAdvised, 0, 0) == 0 ||
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
  const int no_huge_pages = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
  std::thread other([&] {
    CHECK(prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
    CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 3 << 13) == 0);  // idle
    set = true;
    while (!go) target::Sleep(1);
    CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 1);
    int counter = 0;
    CHECK(prctl(PR_GET_TSC, &counter) == 0);
    CHECK_EQ(counter, PR_TSC_SIGSEGV);
    CHECK_EQ(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
    CHECK_EQ(syscall(SYS_ioprio_get, 1, 0) >> 13, 3);
  });
  while (!set) target::Sleep(1);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), no_huge_pages);
  CHECK_EQ(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_DEFAULT);
  if (merges) CHECK_EQ(prctl(kSetMemoryMerge + 1, 0, 0, 0, 0), 1);
  CHECK_EQ(personality(0xffffffff), ADDR_NO_RANDOMIZE);
  CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 70'000);
  CHECK_EQ(syscall(SYS_ioprio_get, 1, 0), kBestEffortSeven);
  CHECK_EQ(strtol(target::Read("/proc/self/coredump_filter").c_str(), nullptr, 16), 0x7f);
  void* const page =
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK_EQ(page == MAP_FAILED, has_mdwe);
  go = true;
  other.join();
}
