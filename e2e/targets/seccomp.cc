// A seccomp filter of the program's own stays in force, in every thread; no_new_privs with it. The threads have
// it in common still: another one can be given to all of them at once. A child in strict mode stays in it.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "target.h"

namespace {

// The call `number` answers EXDEV, all else is allowed.
void Filter(unsigned number, unsigned flags) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}

void Verify() {
  CHECK(syscall(SYS_getpriority, 0, 0) == -1 && errno == EXDEV);
  CHECK_EQ(prctl(PR_GET_SECCOMP), SECCOMP_MODE_FILTER);
  CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

// Reads a letter and writes it back, for as long as it may. Strict mode ends it by SIGKILL.
pid_t StrictChild(int pipes[2]) {
  int to[2], from[2];
  CHECK(pipe(to) == 0 && pipe(from) == 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    char letter = 0;
    while (read(to[0], &letter, 1) == 1 && letter != 'x' && write(from[1], &letter, 1) == 1) {
    }
    syscall(SYS_getppid);
  }
  pipes[0] = from[0];
  pipes[1] = to[1];
  return child;
}

}  // namespace

int main(int, char** argv) {
  int pipes[2];
  const pid_t strict = StrictChild(pipes);
  Filter(SYS_getpriority, 0);
  std::atomic<bool> go = false;
  std::thread other([&] {
    while (!go) {
      target::Sleep(1);
    }
    Verify();
    CHECK(syscall(SYS_getpgid, 0) == -1 && errno == EXDEV);
  });

  target::PassCheckpoint(argv[1]);

  Verify();
  Filter(SYS_getpgid, SECCOMP_FILTER_FLAG_TSYNC);
  go = true;
  other.join();
  char letter = 'a';
  CHECK(write(pipes[1], &letter, 1) == 1 && read(pipes[0], &letter, 1) == 1 && letter == 'a');
  CHECK(write(pipes[1], "x", 1) == 1);
  CHECK_EQ(target::ExitCode(strict), 128 + SIGKILL);
}
