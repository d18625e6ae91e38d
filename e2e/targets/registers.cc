// Registers in flight: a thread that never makes a system call, with values in general, x87 and AVX
// registers only.
#include <atomic>
#include <thread>

#include "target.h"

namespace {

std::atomic<int> spinning = 0;
volatile int stop = 0;

struct Seen {
  unsigned long general = 0;
  double x87 = 0;
  alignas(32) double avx[4] = {};
};

// Spins until `stop` with all values in registers, then writes them out.
void Spin(Seen& seen) {
  alignas(32) static const double kValues[4] = {1.5, -2.25, 1e300, 4e-300};
  spinning = 1;
  asm volatile(
      "vmovapd %[values], %%ymm7\n"
      "fldpi\n"
      "movabs $0x5ca1ab1e0ddba11, %%r15\n"
      "1: cmpl $0, %[stop]\n"
      "je 1b\n"
      "mov %%r15, %[general]\n"
      "fstpl %[x87]\n"
      "vmovapd %%ymm7, %[avx]\n"
      "vzeroupper\n"
      : [general] "=m"(seen.general), [x87] "=m"(seen.x87), [avx] "=m"(seen.avx)
      : [values] "m"(kValues), [stop] "m"(stop)
      : "r15", "xmm7", "st", "memory", "cc");
}

}  // namespace

int main(int, char** argv) {
  if (!__builtin_cpu_supports("avx")) {
    std::puts("no AVX on this processor");
    return 77;
  }
  Seen seen;
  std::thread spinner(Spin, std::ref(seen));
  while (spinning == 0) {
    target::Sleep(1);
  }
  target::Sleep(10);  // past the store to `spinning` and into the loop
  target::PassCheckpoint(argv[1]);
  stop = 1;
  spinner.join();
  CHECK(seen.general == 0x5ca1ab1e0ddba11);
  CHECK(seen.x87 > 3.14159265358979 && seen.x87 < 3.14159265358980);
  CHECK(seen.avx[0] == 1.5 && seen.avx[1] == -2.25 && seen.avx[2] == 1e300 &&
        seen.avx[3] == 4e-300);
}
