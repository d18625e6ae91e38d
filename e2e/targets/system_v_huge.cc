// System V shared memory of huge pages (SHM_HUGETLB) of two processes.
#include <sys/ipc.h>
#include <sys/shm.h>

#include "target.h"

namespace {

constexpr size_t kPage = 2 << 20;
constexpr size_t kBytes = kPage + 100'000;  // no whole number of pages

}  // namespace

int main(int, char** argv) {
  const int id = shmget(IPC_PRIVATE, kBytes, 0600 | SHM_HUGETLB | 21 << 26);
  void* const at = id < 0 ? nullptr : shmat(id, nullptr, 0);
  if (id < 0 || at == reinterpret_cast<void*>(-1)) {  // no right to them, or none are there
    target::PassCheckpoint(argv[1]);
    std::printf(
        "no huge pages here (sysctl vm.nr_hugepages), or no right to them (CAP_IPC_LOCK)\n");
    return 77;
  }
  CHECK(shmctl(id, IPC_RMID, nullptr) == 0);
  char* const memory = static_cast<char*>(at);
  strcpy(memory + kPage + 5000, "huge");
  const pid_t child = fork();
  if (child == 0) {
    target::WaitFor(target::In(argv[1], "go"));
    strcpy(memory, "child");
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(child), 0);
  CHECK(strcmp(memory, "child") == 0 && strcmp(memory + kPage + 5000, "huge") == 0);
  CHECK_EQ(memory[2 * kPage - 1], 0);
  shmid_ds status;
  CHECK(shmctl(id, IPC_STAT, &status) == 0);
  CHECK_EQ(status.shm_segsz, kBytes);
  CHECK(target::Read("/proc/self/smaps").find(" ht ") != std::string::npos);
}
