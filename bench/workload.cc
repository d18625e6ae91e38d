// What the measurements checkpoint: workload FOLDER [MIB THREADS PROCESSES DESCRIPTORS PAGES_A_SECOND SHARED_MIB]
//
// Memory is filled with bytes that do not repeat. Once all is there it makes the file `ready` in FOLDER
// and prints "ready"; from then on it dirties pages at the given rate, spread over all memory.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

namespace {

constexpr size_t kPage = 4096;

uint64_t* Filled(size_t bytes, int flags) {
  void* area = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) abort();
  auto* words = static_cast<uint64_t*>(area);
  uint64_t state = 88172645463325252u;
  for (size_t i = 0; i < bytes / sizeof *words; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;  // xorshift64
    words[i] = state;
  }
  return words;
}

[[noreturn]] void Dirty(uint64_t* words, size_t pages, size_t rate) {
  const size_t burst = rate / 100;  // a hundred bursts a second
  size_t at = 0;
  auto next = std::chrono::steady_clock::now();
  for (;;) {
    for (size_t i = 0; i < burst; ++i, at = (at + 7919) % pages) ++words[at * (kPage / 8)];
    next += std::chrono::milliseconds(10);
    const auto now = std::chrono::steady_clock::now();
    if (next < now) next = now;  // what was missed while frozen is not made up for
    std::this_thread::sleep_until(next);
  }
}

void OpenDescriptors(long count) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) abort();
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) abort();
  for (long i = 0; i < count; i += 2) {
    int ends[2];
    if (pipe(ends) != 0) abort();
  }
}

}  // namespace

int main(int argc, char** argv) {
  auto number = [&](int at) { return argc > at ? atol(argv[at]) : 0; };
  if (argc < 2) return 2;
  const size_t bytes = static_cast<size_t>(number(2)) << 20;
  uint64_t* words = bytes != 0 ? Filled(bytes, MAP_PRIVATE) : nullptr;
  if (number(7) > 0) Filled(static_cast<size_t>(number(7)) << 20, MAP_SHARED);
  OpenDescriptors(number(5));
  for (long i = 1; i < number(4); ++i) {
    if (fork() == 0) {
      for (;;) pause();
    }
  }
  for (long i = 1; i < number(3); ++i) {
    std::thread([] {
      for (;;) pause();
    }).detach();
  }
  std::ofstream(std::string(argv[1]) + "/ready") << "ready\n";
  std::cout << "ready" << std::endl;
  if (number(6) > 0 && words != nullptr) {
    Dirty(words, bytes / kPage, static_cast<size_t>(number(6)));
  }
  for (;;) pause();
}
