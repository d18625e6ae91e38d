// A seccomp filter of the program's own stays in force, in every thread; no_new_privs with it.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "target.h"

namespace {

// getpriority(2) answers EXDEV, all else is allowed.
void Filter() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

void Verify() {
  CHECK(syscall(SYS_getpriority, 0, 0) == -1 && errno == EXDEV);
  CHECK_EQ(prctl(PR_GET_SECCOMP), SECCOMP_MODE_FILTER);
  CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

}  // namespace

int main(int, char** argv) {
  Filter();
  std::atomic<bool> go = false;
  std::thread other([&] {
    while (!go) {
      target::Sleep(1);
    }
    Verify();
  });

  target::PassCheckpoint(argv[1]);

  Verify();
  go = true;
  other.join();
}
