// Source  clone(2), signal(7); tested on 6.18
// Rule    SIGKILL ends a thread group. What clone(2) makes by CLONE_VM without CLONE_THREAD is another one, which
//         keeps the memory and the descriptor table alive until it ends (mm_users, files_struct).
// Rule    CLONE_VFORK: our thread stands still meanwhile, so both may use its errno.
#include "engine/base/surviving_step.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <vector>

namespace stasis {
namespace {

constexpr std::size_t kStackBytes = std::size_t{64} << 10;

int Run(void* step) { return (*static_cast<const std::function<int()>*>(step))(); }

}  // namespace

Status SurvivingStep(const char* name, const std::function<int()>& step) {
  std::vector<std::byte> stack(kStackBytes);
  sigset_t all, before;
  sigfillset(&all);
  // A handler of ours must not run there.
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t child =
      ::clone(Run, stack.data() + stack.size(), CLONE_VM | CLONE_FILES | CLONE_VFORK,
              const_cast<std::function<int()>*>(&step));
  const int error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) return SyscallError(error, name);
  int status = 0;
  while (::waitpid(child, &status, __WALL) < 0) {
    if (errno != EINTR) return SyscallError(errno, name);
  }
  if (!WIFEXITED(status)) return Internal(std::string(name) + ": ended by a signal");
  return WEXITSTATUS(status) == 0 ? OkStatus() : SyscallError(WEXITSTATUS(status), name);
}

}  // namespace stasis
