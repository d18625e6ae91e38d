// Shared memory that is large enough to be saved while its programs run, and that two processes of each of two pairs
// change meanwhile: written by the processor and by the kernel, taken from page tables and from the object, protected;
// the second pair has children that write to it and end, and maps it a second time.
#include <sys/mman.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "target.h"

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPages = 6000;  // 23 MiB
constexpr std::size_t kBytes = kPages * kPage;

// Numbers that are the same in every run.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Below(std::uint64_t limit) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ % limit;
  }

 private:
  std::uint64_t state_;
};

char* Map() {
  void* const at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  return static_cast<char*>(at);
}

// Every second page of what two processes share, and what each must hold: its number at both ends, or zeros.
class Half {
 public:
  Half(char* bytes, std::size_t first, bool restless)
      : bytes_(bytes), first_(first), restless_(restless), random_(first + 11), expected_(kPages) {
    for (std::size_t page = first_; page < kPages; page += 2) Write(page);
    CHECK_EQ(pipe2(pipe_, O_CLOEXEC), 0);
  }

  void Change() {
    const std::size_t page = random_.Below(kPages / 2) * 2 + first_;
    switch (random_.Below(restless_ ? 64 : 12)) {
      case 0:
        return Remove(page);
      case 1:
        Write(page);
        CHECK_EQ(madvise(At(page), kPage, MADV_DONTNEED), 0);  // its page tables alone forget it
        return;
      case 2:
        return ReadInto(page);
      case 3:
        return Protect(page);
      case 4:
        return restless_ ? LetAChildWrite(page) : Write(page);
      case 5:
        return restless_ ? WriteElsewhere(page) : Write(page);
      default:
        Write(page);
    }
  }

  void Check() const {
    for (std::size_t page = first_; page < kPages; page += 2) {
      const std::uint64_t* const words = Words(page);
      CHECK_EQ(words[0], expected_[page]);
      CHECK_EQ(words[kPage / 8 - 1], expected_[page]);
    }
  }

 private:
  char* At(std::size_t page) const { return bytes_ + page * kPage; }
  std::uint64_t* Words(std::size_t page) const {
    return reinterpret_cast<std::uint64_t*>(At(page));
  }
  void Write(std::size_t page) {
    expected_[page] = ++last_;
    Words(page)[0] = last_;
    Words(page)[kPage / 8 - 1] = last_;
  }
  // Zeros that are there again since somebody looked, or are not.
  void Remove(std::size_t page) {
    CHECK_EQ(madvise(At(page), kPage, MADV_REMOVE), 0);
    expected_[page] = 0;
    if (random_.Below(2) == 0) CHECK(*static_cast<volatile char*>(At(page)) == 0);
  }
  void ReadInto(std::size_t page) {
    expected_[page] = ++last_;
    std::vector<std::uint64_t> words(kPage / 8, last_);
    CHECK_EQ(write(pipe_[1], words.data(), kPage), kPage);
    CHECK_EQ(read(pipe_[0], At(page), kPage), kPage);
  }
  void Protect(std::size_t page) {
    CHECK_EQ(mprotect(At(page), kPage, PROT_READ), 0);
    CHECK_EQ(mprotect(At(page), kPage, PROT_READ | PROT_WRITE), 0);
    Write(page);
  }
  void LetAChildWrite(std::size_t page) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      Write(page);
      _exit(0);
    }
    CHECK_EQ(target::ExitCode(child), 0);
    expected_[page] = ++last_;
  }
  void WriteElsewhere(std::size_t page) {
    void* const again = mremap(bytes_, 0, kBytes, MREMAP_MAYMOVE);
    CHECK(again != MAP_FAILED);
    char* const here = std::exchange(bytes_, static_cast<char*>(again));
    Write(page);
    bytes_ = here;
    CHECK_EQ(munmap(again, kBytes), 0);
  }

  char* bytes_;
  std::size_t first_;
  bool restless_;
  Random random_;
  std::uint64_t last_ = 0;
  std::vector<std::uint64_t> expected_;
  int pipe_[2] = {-1, -1};
};

void Work(const char* folder, const char* ready, Half half) {
  target::Touch(target::In(folder, ready));
  const std::string go = target::In(folder, "go");
  while (!target::Exists(go)) {
    for (int i = 0; i < 32; ++i) half.Change();
    target::Sleep(1);
  }
  half.Check();
}

// Two processes that share memory with nobody else.
void Pair(const char* folder, bool restless) {
  char* const bytes = Map();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    Work(folder, restless ? "ready1" : "ready2", Half(bytes, 1, restless));
    _exit(0);
  }
  Work(folder, restless ? "ready3" : "ready4", Half(bytes, 0, restless));
  CHECK_EQ(target::ExitCode(child), 0);
}

}  // namespace

int main(int, char** argv) {
  const char* const folder = argv[1];
  std::vector<pid_t> pairs;
  for (const bool restless : {false, true}) {
    pairs.push_back(fork());
    CHECK(pairs.back() >= 0);
    if (pairs.back() != 0) continue;
    Pair(folder, restless);
    _exit(0);
  }
  for (const char* const ready : {"ready1", "ready2", "ready3", "ready4"}) {
    target::WaitFor(target::In(folder, ready));
  }
  target::Touch(target::In(folder, "ready"));
  for (const pid_t pair : pairs) CHECK_EQ(target::ExitCode(pair), 0);
  return 0;
}
