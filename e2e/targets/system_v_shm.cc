// System V shared memory of two processes: one segment with a key, one that ends with its last process,
// one attached to be read only.
#include <sys/ipc.h>
#include <sys/shm.h>

#include "target.h"

namespace {

constexpr size_t kBytes = 100'000;  // no whole number of pages

char* Attach(int id, int flags = 0) {
  void* const memory = shmat(id, nullptr, flags);
  CHECK(memory != reinterpret_cast<void*>(-1));
  return static_cast<char*>(memory);
}

}  // namespace

int main(int, char** argv) {
  const key_t key = 0x57a50000 + getpid();
  const int named = shmget(key, kBytes, IPC_CREAT | IPC_EXCL | 0640);
  const int doomed = shmget(IPC_PRIVATE, kBytes, 0600);
  CHECK(named >= 0 && doomed >= 0);
  char* const one = Attach(named);
  char* const view = Attach(named, SHM_RDONLY);
  char* const two = Attach(doomed);
  CHECK(shmctl(doomed, IPC_RMID, nullptr) == 0);
  strcpy(one + 50'000, "named");
  strcpy(two + 70'000, "doomed");
  const pid_t child = fork();
  if (child == 0) {
    target::WaitFor(target::In(argv[1], "go"));
    strcpy(one, "child");
    strcpy(two, "child");
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::ExitCode(child), 0);
  CHECK(strcmp(one, "child") == 0 && strcmp(two, "child") == 0 && strcmp(view, "child") == 0);
  CHECK(strcmp(view + 50'000, "named") == 0 && strcmp(two + 70'000, "doomed") == 0);
  shmid_ds status;
  CHECK(shmctl(named, IPC_STAT, &status) == 0);
  CHECK_EQ(status.shm_segsz, kBytes);
  CHECK_EQ(status.shm_perm.mode, 0640);
  CHECK_EQ(status.shm_nattch, 2);
  CHECK_EQ(shmget(key, kBytes, 0), named);
  CHECK(shmctl(doomed, IPC_STAT, &status) == 0);
  CHECK(status.shm_perm.mode & SHM_DEST);
  CHECK(shmdt(two) == 0);
  CHECK(shmctl(doomed, IPC_STAT, &status) == -1 && errno == EINVAL);
  CHECK(shmctl(named, IPC_RMID, nullptr) == 0);
}
