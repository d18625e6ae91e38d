// Memory that is large enough to be saved while its program runs, and that the program changes meanwhile in
// every way: written, given back, unmapped and mapped again, moved, filled by a device, shared with children.
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "target.h"

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kBlockPages = 16;
constexpr std::size_t kBlockBytes = kBlockPages * kPage;

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

// Pages, and what each must hold: its number at both ends, or nothing but zeros.
class Memory {
 public:
  Memory(std::size_t blocks, std::uint64_t seed)
      : random_(seed), blocks_(blocks), expected_(blocks * kBlockPages) {
    void* const at = mmap(nullptr, blocks * kBlockBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    bytes_ = static_cast<char*>(at);
    for (std::size_t page = 0; page < expected_.size(); ++page) Write(page);
  }

  void Change() {
    const std::size_t block = random_.Below(blocks_), other = random_.Below(blocks_);
    switch (random_.Below(16)) {
      case 0:
        CHECK_EQ(madvise(Block(block), kBlockBytes, MADV_DONTNEED), 0);
        return Forget(block);
      case 1:
        CHECK_EQ(munmap(Block(block), kBlockBytes), 0);
        CHECK(mmap(Block(block), kBlockBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == Block(block));
        return Forget(block);
      case 2:
        return Swap(block, other);
      case 3:
        return LetAChildWrite(block);
      default:
        Write(random_.Below(expected_.size()));
    }
  }

  void Check() const {
    for (std::size_t page = 0; page < expected_.size(); ++page) {
      const std::uint64_t* const words = Words(page);
      CHECK_EQ(words[0], expected_[page]);
      CHECK_EQ(words[kPage / 8 - 1], expected_[page]);
    }
  }

 private:
  char* Block(std::size_t block) const { return bytes_ + block * kBlockBytes; }
  std::uint64_t* Words(std::size_t page) const {
    return reinterpret_cast<std::uint64_t*>(bytes_ + page * kPage);
  }
  void Write(std::size_t page) {
    expected_[page] = ++last_;
    Words(page)[0] = last_;
    Words(page)[kPage / 8 - 1] = last_;
  }
  void Forget(std::size_t block) {
    for (std::size_t i = 0; i < kBlockPages; ++i) expected_[block * kBlockPages + i] = 0;
  }
  void Move(char* from, char* to) {
    CHECK(mremap(from, kBlockBytes, kBlockBytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
  }
  void Swap(std::size_t a, std::size_t b) {
    if (a == b) return;
    void* const aside = mmap(nullptr, kBlockBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(aside != MAP_FAILED);
    Move(Block(a), static_cast<char*>(aside));
    Move(Block(b), Block(a));
    Move(static_cast<char*>(aside), Block(b));
    for (std::size_t i = 0; i < kBlockPages; ++i) {
      std::swap(expected_[a * kBlockPages + i], expected_[b * kBlockPages + i]);
    }
  }
  // It writes to its own copy alone.
  void LetAChildWrite(std::size_t block) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      std::memset(Block(block), 0xff, kBlockBytes);
      _exit(0);
    }
    CHECK_EQ(target::ExitCode(child), 0);
  }

  Random random_;
  std::size_t blocks_;
  std::uint64_t last_ = 0;
  std::vector<std::uint64_t> expected_;
  char* bytes_;
};

constexpr std::size_t kPieces = 8, kPieceBytes = 64 * kPage;

int MakeFile(const std::string& path) {
  const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  const std::vector<char> zeros(kPieceBytes);
  for (std::size_t piece = 0; piece < kPieces; ++piece) {
    std::vector<char> bytes(kPieceBytes, static_cast<char>('a' + piece));
    CHECK_EQ(write(fd, bytes.data(), bytes.size()), kPieceBytes);
  }
  close(fd);
  return open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
}

// A device writes to pinned pages, not the processor. Where there is no O_DIRECT, the kernel does.
void ReadDirectly(int fd, char* into, const std::atomic<bool>& ends) {
  for (std::size_t piece = 0; !ends; piece = (piece + 1) % kPieces) {
    const auto offset = static_cast<off_t>(piece * kPieceBytes);
    CHECK_EQ(pread(fd, into, kPieceBytes, offset), kPieceBytes);
    for (std::size_t at = 0; at < kPieceBytes; at += 512) {
      CHECK_EQ(into[at], static_cast<char>('a' + piece));
    }
  }
}

void Work(const char* folder, Memory& memory) {
  const std::string go = target::In(folder, "go");
  while (!target::Exists(go)) {
    for (int i = 0; i < 32; ++i) memory.Change();
    target::Sleep(1);
  }
  memory.Check();
}

}  // namespace

int main(int, char** argv) {
  const char* const folder = argv[1];
  const std::string path = target::In(folder, "pieces");
  int fd = MakeFile(path);
  if (fd < 0) fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const pid_t child = fork();
  CHECK(child >= 0);
  Memory memory(child == 0 ? 350 : 500, child == 0 ? 7 : 8);  // 22 and 31 MiB
  if (child == 0) {
    Work(folder, memory);
    _exit(0);
  }
  void* const buffer =
      mmap(nullptr, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(buffer != MAP_FAILED);
  std::atomic<bool> ends = false;
  std::thread reader([&] { ReadDirectly(fd, static_cast<char*>(buffer), ends); });
  target::Touch(target::In(folder, "ready"));
  Work(folder, memory);
  ends = true;
  reader.join();
  CHECK_EQ(target::ExitCode(child), 0);
  return 0;
}
