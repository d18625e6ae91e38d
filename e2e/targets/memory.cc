// Memory of every common kind, filled with a pattern of its own and checked page by page.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <vector>

#include "target.h"

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 64;
constexpr size_t kBytes = kPages * kPage;

void Fill(char* area, size_t bytes, unsigned seed) {
  for (size_t i = 0; i < bytes; i++) {
    area[i] = static_cast<char>((i * 31 + i / kPage + seed) & 0xff);
  }
}

bool Intact(const char* area, size_t bytes, unsigned seed) {
  for (size_t i = 0; i < bytes; i++) {
    if (area[i] != static_cast<char>((i * 31 + i / kPage + seed) & 0xff)) {
      return false;
    }
  }
  return true;
}

char* Map(int protection, int flags, int fd = -1) {
  void* area = mmap(nullptr, kBytes, protection, flags, fd, 0);
  CHECK(area != MAP_FAILED);
  return static_cast<char*>(area);
}

int File(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  std::vector<char> bytes(kBytes);
  Fill(bytes.data(), kBytes, 9);
  CHECK_EQ(write(fd, bytes.data(), kBytes), kBytes);
  return fd;
}

sigjmp_buf fault;
bool Faults(const volatile char* address) {
  struct sigaction action = {};
  action.sa_handler = [](int) { siglongjmp(fault, 1); };
  CHECK(sigaction(SIGSEGV, &action, nullptr) == 0);
  if (sigsetjmp(fault, 1) != 0) {
    return true;
  }
  (void)*address;
  return false;
}

}  // namespace

int main(int, char** argv) {
  constexpr int kWritable = PROT_READ | PROT_WRITE;
  char* anonymous = Map(kWritable, MAP_PRIVATE | MAP_ANONYMOUS);
  Fill(anonymous, kBytes, 1);
  char* shared = Map(kWritable, MAP_SHARED | MAP_ANONYMOUS);
  Fill(shared, kBytes, 2);
  char* sparse = Map(kWritable, MAP_PRIVATE | MAP_ANONYMOUS);
  sparse[17 * kPage] = 'x';
  char* guarded = Map(kWritable, MAP_PRIVATE | MAP_ANONYMOUS);
  Fill(guarded, kBytes, 3);
  CHECK(mprotect(guarded + kBytes - kPage, kPage, PROT_NONE) == 0);
  char* hidden = Map(kWritable, MAP_PRIVATE | MAP_ANONYMOUS);
  Fill(hidden, kBytes, 4);
  CHECK(mprotect(hidden, kBytes, PROT_NONE) == 0);  // its content must come back with it

  const int private_fd = File(target::In(argv[1], "private"));
  char* private_file = Map(kWritable, MAP_PRIVATE, private_fd);
  Fill(private_file + kPage, kPage, 5);  // one page copied on write, the others the file's own
  const int shared_fd = File(target::In(argv[1], "shared"));
  char* shared_file = Map(kWritable, MAP_SHARED, shared_fd);
  Fill(shared_file, kPage, 6);
  close(private_fd);
  close(shared_fd);
  std::vector<char> heap(kBytes);
  Fill(heap.data(), kBytes, 7);
  char stack[16 * kPage];
  Fill(stack, sizeof(stack), 8);
  void* top = sbrk(0);

  target::PassCheckpoint(argv[1]);

  CHECK(sbrk(0) == top);
  CHECK(sbrk(kPage) == top);  // the heap still grows where it ended
  CHECK(Intact(anonymous, kBytes, 1));
  CHECK(Intact(shared, kBytes, 2));
  for (size_t i = 0; i < kBytes; i++) {
    CHECK_EQ(sparse[i], i == 17 * kPage ? 'x' : 0);
  }
  CHECK(Intact(guarded, kBytes - kPage, 3));
  CHECK(Faults(guarded + kBytes - 1));
  CHECK(Faults(hidden));
  CHECK(mprotect(hidden, kBytes, PROT_READ) == 0);
  CHECK(Intact(hidden, kBytes, 4));
  CHECK(Intact(private_file + kPage, kPage, 5));
  std::vector<char> original(kBytes);
  Fill(original.data(), kBytes, 9);
  CHECK(memcmp(private_file, original.data(), kPage) == 0);
  CHECK(memcmp(private_file + 2 * kPage, original.data() + 2 * kPage, kBytes - 2 * kPage) == 0);
  CHECK(Intact(shared_file, kPage, 6));
  shared_file[0] = '!';  // still the file itself, not a copy
  CHECK(target::Read(target::In(argv[1], "shared"))[0] == '!');
  CHECK(Intact(heap.data(), kBytes, 7));
  CHECK(Intact(stack, sizeof(stack), 8));
}
