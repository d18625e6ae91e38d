// System V segments of which parts are mapped: of one protection or another, unmapped, moved. shmdt(2) takes away what
// is left in its place.
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include "target.h"

namespace {

constexpr size_t kPage = 4096;

bool CanWrite(char* at) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK(write(ends[1], "w", 1) == 1);
  const bool can = read(ends[0], at, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return can;
}

}  // namespace

int main(int, char** argv) {
  const int id = shmget(IPC_PRIVATE, 5 * kPage, IPC_CREAT | 0600);
  CHECK(id >= 0);
  char* const all = static_cast<char*>(shmat(id, nullptr, 0));
  CHECK(all != reinterpret_cast<char*>(-1));
  for (size_t page = 0; page < 5; ++page) snprintf(all + page * kPage, kPage, "page %zu", page);
  CHECK(mprotect(all + kPage, kPage, PROT_READ) == 0);
  CHECK(munmap(all + 2 * kPage, kPage) == 0);
  void* const other = mmap(all + 2 * kPage, kPage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(other == all + 2 * kPage);
  strcpy(all + 2 * kPage, "other");
  char* const moved = static_cast<char*>(
      mremap(all + 4 * kPage, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED,
             mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
  CHECK(moved != MAP_FAILED);

  target::PassCheckpoint(argv[1]);

  CHECK(strcmp(all, "page 0") == 0 && strcmp(all + kPage, "page 1") == 0);
  CHECK(strcmp(all + 2 * kPage, "other") == 0 && strcmp(all + 3 * kPage, "page 3") == 0);
  CHECK(strcmp(moved, "page 4") == 0);
  CHECK(CanWrite(all) && !CanWrite(all + kPage) && CanWrite(all + 3 * kPage) && CanWrite(moved));
  char* const again = static_cast<char*>(shmat(id, nullptr, 0));
  CHECK(strcmp(again + 2 * kPage, "page 2") == 0 && again[0] == 'w' && again[4 * kPage] == 'w');
  CHECK(shmdt(again) == 0 && shmdt(all) == 0);
  CHECK(strcmp(all + 2 * kPage, "other") == 0);
  shmid_ds status;
  CHECK(shmctl(id, IPC_STAT, &status) == 0);
  CHECK_EQ(status.shm_nattch, 1);  // what was moved
  CHECK(munmap(moved, kPage) == 0 && shmctl(id, IPC_RMID, nullptr) == 0);
}
