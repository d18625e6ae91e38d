// Anonymous memory of huge pages (hugetlb), private and shared with a child.
#include <sys/mman.h>

#include <cstring>

#include "target.h"

namespace {

constexpr size_t kBytes = 2 << 20;

char* Map(int flags) {
  void* const at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        flags | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26, -1, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

}  // namespace

int main(int, char** argv) {
  char* const own = Map(MAP_PRIVATE);
  char* const shared = Map(MAP_SHARED);
  if (own == nullptr || shared == nullptr) {
    target::PassCheckpoint(argv[1]);
    std::printf("no huge pages here (sysctl vm.nr_hugepages)\n");
    return 77;
  }
  memset(own, 'a', kBytes);
  memset(shared, 'b', kBytes);
  const pid_t child = fork();
  if (child == 0) {
    target::WaitFor(target::In(argv[1], "go"));
    shared[kBytes - 1] = 'c';
    _exit(own[kBytes - 1] == 'a' ? 0 : 1);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(own[0], 'a');
  CHECK_EQ(own[kBytes - 1], 'a');
  CHECK_EQ(shared[0], 'b');
  CHECK_EQ(shared[kBytes - 1], 'c');
  CHECK(target::Read("/proc/self/smaps").find(" ht ") != std::string::npos);
}
