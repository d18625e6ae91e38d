// Memory of huge pages (hugetlb): anonymous, private and shared with a child, and of memfds.
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

#include "target.h"

namespace {

constexpr size_t kBytes = 2 << 20;

char* Map(int flags) {
  void* const at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        flags | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26, -1, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

// A memfd of two huge pages, the first of which was never touched.
struct Memfd {
  int fd = memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING);
  char* shared = nullptr;
  char* own = nullptr;

  bool Make() {
    if (fd < 0 || ftruncate(fd, 2 * kBytes) != 0) return false;
    void* const maps[] = {
        mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, kBytes),
    };
    if (maps[0] == MAP_FAILED || maps[1] == MAP_FAILED) return false;
    shared = static_cast<char*>(maps[0]);
    own = static_cast<char*>(maps[1]);
    strcpy(shared + kBytes + 5000, "shared");
    own[6000] = 'o';
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0;
  }

  void Verify() const {
    CHECK(strcmp(shared + kBytes + 5000, "shared") == 0 && strcmp(own + 5000, "shared") == 0);
    CHECK_EQ(own[6000], 'o');
    CHECK_EQ(shared[kBytes + 6000], 0);
    CHECK_EQ(shared[0], 0);
    char got[7] = {};
    CHECK_EQ(pread(fd, got, 6, kBytes + 5000), 6);
    CHECK(strcmp(got, "shared") == 0);
    CHECK_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK);
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && status.st_blksize == kBytes && status.st_size == 2 * kBytes);
  }
};

}  // namespace

int main(int, char** argv) {
  char* const own = Map(MAP_PRIVATE);
  char* const shared = Map(MAP_SHARED);
  Memfd memfd;
  if (own == nullptr || shared == nullptr || !memfd.Make()) {
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
  memfd.Verify();
  CHECK(target::Read("/proc/self/smaps").find(" ht ") != std::string::npos);
}
