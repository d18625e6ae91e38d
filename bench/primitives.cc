// What the kernel's own ways of reading, filling and watching memory cost here: primitives MIB FOLDER
//
// Prints one line a figure: name, value, unit. All are of ordinary pages: huge ones are turned off.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr size_t kPage = 4096;

// linux/fs.h has these from 6.7 on; Debian's headers are older.
struct PageRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size = 0, flags = 0, start = 0, end = 0, walk_end = 0, vec = 0, vec_len = 0,
           max_pages = 0;
  uint64_t inverted = 0, mask = 0, any_of = 0, wanted = 0;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
constexpr uint64_t kWritten = 2, kPresent = 8, kSwapped = 16, kPfnZero = 32;
constexpr uint64_t kScanProtect = 1, kScanCheckAsync = 2;
constexpr uint64_t kFeatureProtectUnpopulated = 1 << 13, kFeatureProtectAsync = 1 << 15;

[[noreturn]] void Die(const char* what) {
  perror(what);
  exit(1);
}

double Milliseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

void Show(const std::string& name, double value, const char* unit) {
  printf("%s\t%.3f\t%s\n", name.c_str(), value, unit);
}

void ShowSpeed(const std::string& name, size_t bytes, double took) {
  Show(name, static_cast<double>(bytes) / (1 << 30) / (took / 1000), "GiB/s");
}

char* Map(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) Die("mmap");
  madvise(at, bytes, MADV_NOHUGEPAGE);
  return static_cast<char*>(at);
}

void InPieces(size_t bytes, size_t piece, const std::function<ssize_t(size_t)>& move) {
  for (size_t at = 0; at < bytes; at += piece) {
    if (move(at) != static_cast<ssize_t>(piece)) Die("a piece");
  }
}

const char* Name(size_t piece) {
  return piece == kPage ? "4 KiB" : piece == 1 << 16 ? "64 KiB" : "1 MiB";
}

// From outside: a child that shares nothing that is written has the memory.
void FromOutside(char* area, size_t bytes) {
  const pid_t child = fork();
  if (child == 0) {
    for (size_t i = 0; i < bytes; i += kPage) area[i] ^= 1;  // pages of its own
    raise(SIGSTOP);
    _exit(0);
  }
  waitpid(child, nullptr, WUNTRACED);
  const int memory = open(("/proc/" + std::to_string(child) + "/mem").c_str(), O_RDWR | O_CLOEXEC);
  std::vector<char> buffer(1 << 20, 1);
  for (size_t piece : {kPage, size_t{1} << 16, size_t{1} << 20}) {
    const auto vectored = [&](auto call) {
      return Milliseconds([&] {
        InPieces(bytes, piece, [&](size_t at) {
          const iovec here{buffer.data(), piece}, there{area + at, piece};
          return call(child, &here, 1, &there, 1, 0);
        });
      });
    };
    ShowSpeed(std::string("process_vm_readv, ") + Name(piece), bytes, vectored(process_vm_readv));
    ShowSpeed(std::string("process_vm_writev, ") + Name(piece), bytes, vectored(process_vm_writev));
    ShowSpeed(std::string("pread of /proc/PID/mem, ") + Name(piece), bytes, Milliseconds([&] {
                InPieces(bytes, piece, [&](size_t at) {
                  return pread(memory, buffer.data(), piece,
                               static_cast<off_t>(reinterpret_cast<uintptr_t>(area + at)));
                });
              }));
  }
  close(memory);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

int Userfaultfd(uint64_t features) {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) Die("userfaultfd");
  return fd;
}

void Register(int fd, char* area, size_t bytes, uint64_t mode) {
  uffdio_register range{{reinterpret_cast<uintptr_t>(area), bytes}, mode, 0};
  if (ioctl(fd, UFFDIO_REGISTER, &range) != 0) Die("UFFDIO_REGISTER");
}

// Memory that is not there yet, in two ways.
void FillNew(size_t bytes) {
  std::vector<char> source(1 << 20, 1);
  for (size_t piece : {kPage, size_t{1} << 16, size_t{1} << 20}) {
    char* area = Map(bytes);
    ShowSpeed(std::string("process_vm_writev into new memory, ") + Name(piece), bytes,
              Milliseconds([&] {
                InPieces(bytes, piece, [&](size_t at) {
                  const iovec here{source.data(), piece}, there{area + at, piece};
                  return process_vm_writev(getpid(), &here, 1, &there, 1, 0);
                });
              }));
    munmap(area, bytes);
    area = Map(bytes);
    const int fd = Userfaultfd(0);
    Register(fd, area, bytes, UFFDIO_REGISTER_MODE_MISSING);
    ShowSpeed(std::string("UFFDIO_COPY, ") + Name(piece), bytes, Milliseconds([&] {
                InPieces(bytes, piece, [&](size_t at) {
                  uffdio_copy copy{reinterpret_cast<uintptr_t>(area + at),
                                   reinterpret_cast<uintptr_t>(source.data()), piece, 0, 0};
                  return ioctl(fd, UFFDIO_COPY, &copy) == 0 ? static_cast<ssize_t>(copy.copy) : -1;
                });
              }));
    close(fd);
    munmap(area, bytes);
  }
}

uint64_t Scan(int pagemap, char* area, size_t bytes, ScanArguments what) {
  std::vector<PageRegion> regions(1024);
  const auto end = reinterpret_cast<uintptr_t>(area) + bytes;
  uint64_t found = 0;
  what.size = sizeof what, what.end = end;
  what.vec = reinterpret_cast<uintptr_t>(regions.data()), what.vec_len = regions.size();
  for (what.start = end - bytes; what.start < end; what.start = what.walk_end) {
    const int count = ioctl(pagemap, kPagemapScan, &what);
    if (count < 0) Die("PAGEMAP_SCAN");
    found += static_cast<uint64_t>(count);
  }
  return found;
}

void ReadAll(const char* path) {
  std::vector<char> buffer(1 << 20);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  while (read(fd, buffer.data(), buffer.size()) > 0) continue;
  close(fd);
}

void Watch(char* area, size_t bytes) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  const auto scan = [&](const char* name, ScanArguments what) {
    Show(name, Milliseconds([&] { Scan(pagemap, area, bytes, what); }), "ms");
  };
  scan("PAGEMAP_SCAN, generic",
       {.inverted = kPfnZero, .mask = kPfnZero, .any_of = kPresent | kSwapped});
  const int fd = Userfaultfd(kFeatureProtectUnpopulated | kFeatureProtectAsync);
  Show("userfaultfd, register for write-protect",
       Milliseconds([&] { Register(fd, area, bytes, UFFDIO_REGISTER_MODE_WP); }), "ms");
  scan("PAGEMAP_SCAN, write-protect all",
       {.flags = kScanProtect | kScanCheckAsync, .mask = kWritten, .wanted = kWritten});
  scan("PAGEMAP_SCAN, written only (fast path), none written",
       {.mask = kWritten, .wanted = kWritten});
  scan("PAGEMAP_SCAN, generic with written", {.inverted = kPfnZero,
                                              .mask = kPfnZero,
                                              .any_of = kPresent | kSwapped,
                                              .wanted = kWritten | kPresent});
  const double faults = Milliseconds([&] {
    for (size_t i = 0; i < bytes; i += kPage) ++area[i];
  });
  const size_t pages = bytes / kPage;
  Show("write fault after write-protect", faults * 1000 / static_cast<double>(pages), "us");
  scan("PAGEMAP_SCAN, written only (fast path), all written",
       {.mask = kWritten, .wanted = kWritten});
  close(fd);
  close(pagemap);
}

void Files(char* area, size_t bytes, const std::string& path) {
  for (size_t piece : {kPage, size_t{1} << 16, size_t{1} << 20}) {
    // warm: blocks and page cache are there already
    for (const char* state : {"past the page cache", "cold", "warm"}) {
      if (*state != 'w') unlink(path.c_str());
      const int past = *state == 'p' ? O_DIRECT : 0;
      if (past != 0 && piece == kPage) continue;  // minutes
      const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | past, 0600);
      if (fd < 0) Die(path.c_str());
      ShowSpeed(std::string("write and fsync, ") + Name(piece) + ", " + state, bytes,
                Milliseconds([&] {
                  InPieces(bytes, piece, [&](size_t at) { return write(fd, area + at, piece); });
                  if (fsync(fd) != 0) Die("fsync");
                }));
      close(fd);
    }
    char* fresh = Map(bytes);
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    ShowSpeed(std::string("pread from the page cache into new memory, ") + Name(piece), bytes,
              Milliseconds([&] {
                InPieces(bytes, piece, [&](size_t at) {
                  return pread(fd, fresh + at, piece, static_cast<off_t>(at));
                });
              }));
    close(fd);
    munmap(fresh, bytes);
  }
  unlink(path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const size_t bytes = static_cast<size_t>(atol(argv[1])) << 20;
  char* area = Map(bytes);
  for (size_t i = 0; i < bytes; i += kPage) area[i] = 1;
  FromOutside(area, bytes);
  FillNew(bytes);
  Files(area, bytes, std::string(argv[2]) + "/written");
  Show("read of /proc/PID/smaps", Milliseconds([] { ReadAll("/proc/self/smaps"); }), "ms");
  Show("read of /proc/PID/maps", Milliseconds([] { ReadAll("/proc/self/maps"); }), "ms");
  Watch(area, bytes);
}
