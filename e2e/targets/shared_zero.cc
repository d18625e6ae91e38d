// /dev/zero mapped shared by a program and its child, and open: memory of their own behind a device's name.
#include <sys/mman.h>

#include "target.h"

int main(int, char** argv) {
  const int zero = open("/dev/zero", O_RDWR);
  CHECK(zero >= 0);
  void* const at = mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
  CHECK(at != MAP_FAILED);
  char* const memory = static_cast<char*>(at);
  memcpy(memory + 4096, "kept", 5);
  const pid_t child = fork();
  if (child == 0) {
    while (reinterpret_cast<volatile char*>(memory)[0] != 'g') target::Sleep(1);
    memcpy(memory + 8192, memory + 4096, 5);
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  char byte = 1;
  CHECK_EQ(read(zero, &byte, 1), 1);
  CHECK_EQ(byte, 0);
  memory[0] = 'g';
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(strcmp(memory + 8192, "kept"), 0);
}
