// Programs that have unmapped their vDSO, or its code and not its data, as valgrind(1) does.
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
  const auto is_there = [](const char* name) {
    return target::Read("/proc/self/maps").find(name) != std::string::npos;
  };
  const auto child = [&](bool keeps_data) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    while (Unmap("[vdso]") || (!keeps_data && Unmap("[vvar"))) {
    }
    target::PassCheckpoint(argv[1]);
    CHECK(!is_there("[vdso]") && is_there("[vvar]") == keeps_data);
    _exit(0);
  };
  const pid_t none = child(false), data = child(true);
  CHECK_EQ(target::ExitCode(none), 0);
  CHECK_EQ(target::ExitCode(data), 0);
}
