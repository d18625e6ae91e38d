// A program that has unmapped its vDSO.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cinttypes>

#include "target.h"

namespace {

// Unmaps what maps names so; false when there is none.
bool Unmap(const char* name) {
  const std::string text = target::Read("/proc/self/maps");
  std::size_t at = text.find(name);
  if (at == std::string::npos) return false;
  at = text.rfind('\n', at) + 1;
  std::uintptr_t start = 0, end = 0;
  CHECK(std::sscanf(text.c_str() + at, "%" SCNxPTR "-%" SCNxPTR, &start, &end) == 2);
  CHECK(syscall(SYS_munmap, start, end - start) == 0);
  return true;
}

}  // namespace

int main(int, char** argv) {
  const pid_t child = fork();
  if (child == 0) {
    while (Unmap("[vvar") || Unmap("[vdso]")) {
    }
    target::PassCheckpoint(argv[1]);
    const std::string text = target::Read("/proc/self/maps");
    CHECK(text.find("[vdso]") == std::string::npos && text.find("[vvar") == std::string::npos);
    _exit(0);
  }
  CHECK_EQ(target::ExitCode(child), 0);
}
