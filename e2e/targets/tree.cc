// A tree of processes with memory copied on write and memory truly shared.
#include <sys/mman.h>

#include <array>
#include <atomic>

#include "target.h"

namespace {

constexpr size_t kBytes = 1 << 20;

struct Shared {
  std::atomic<int> ready;
  std::atomic<int> sum;
};

void Child(const char* folder, Shared& shared, char* inherited, int index) {
  inherited[static_cast<size_t>(index) * 4096] = 'c';  // one page of its own, the rest inherited
  const pid_t parent = getppid();
  const pid_t grandchild = fork();
  if (grandchild == 0) {
    shared.ready++;
    target::WaitFor(target::In(folder, "go"));
    shared.sum += 10;
    _exit(static_cast<int>(inherited[static_cast<size_t>(index) * 4096]));
  }
  shared.ready++;
  target::WaitFor(target::In(folder, "go"));
  CHECK_EQ(getppid(), parent);
  for (size_t i = 0; i < kBytes; i++) {
    CHECK_EQ(inherited[i], i == static_cast<size_t>(index) * 4096 ? 'c' : 'p');
  }
  shared.sum += 1;
  CHECK_EQ(target::ExitCode(grandchild), 'c');
  _exit(0);
}

}  // namespace

int main(int, char** argv) {
  void* area =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(area != MAP_FAILED);
  Shared& shared = *new (area) Shared{};
  char* inherited = static_cast<char*>(malloc(kBytes));
  memset(inherited, 'p', kBytes);
  std::array<pid_t, 3> children{};
  for (int i = 0; i < 3; i++) {
    children[static_cast<size_t>(i)] = fork();
    if (children[static_cast<size_t>(i)] == 0) {
      Child(argv[1], shared, inherited, i);
    }
  }
  while (shared.ready < 6) {
    target::Sleep(1);
  }

  target::PassCheckpoint(argv[1]);

  for (const pid_t child : children) {
    CHECK_EQ(target::ExitCode(child), 0);
  }
  CHECK_EQ(shared.sum, 33);
  for (size_t i = 0; i < kBytes; i++) {
    CHECK_EQ(inherited[i], 'p');
  }
}
