// Source  clone(2) on clone3 and CLONE_PARENT, chroot(2), execveat(2), prctl(2) PR_SET_PDEATHSIG; tested on
//         6.18
// Rule    With CLONE_PARENT the exit signal is that of the caller itself, and must not be named.
// Rule    Pid 1 is the first process of a pid namespace, with which that ends: whoever had it gets a new one.
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/io.h"
#include "engine/checkpoint_images.h"
#include "engine/proc/task.h"
#include "engine/restore.h"
#include "engine/tasks/user_namespace.h"

namespace stasis::engine {
namespace {

using std::chrono::steady_clock;

// Was it killed, though it may not have seen it yet, or has it ended?
bool IsDying(pid_t pid) {
  constexpr std::uint32_t kExiting = 0x4;  // PF_EXITING, include/linux/sched.h
  const std::string folder = "/proc/" + std::to_string(pid);
  const auto stat_text = ReadFileAt(AT_FDCWD, folder + "/stat");
  const auto stat = stat_text.ok() ? ParseTaskStat(*stat_text) : stat_text.status();
  if (!stat.ok()) return false;
  if (stat->state == 'Z' || stat->state == 'X' || (stat->flags & kExiting) != 0) return true;
  const auto text = ReadFileAt(AT_FDCWD, folder + "/status");
  const auto status = text.ok() ? ParseTaskStatus(*text) : text.status();
  if (!status.ok()) return false;
  return ((status->sig_pending | status->shared_pending) >> (SIGKILL - 1) & 1) != 0;
}

// A process that was just killed keeps its pid until its parent has waited for it, which a busy init may do
// seconds later. Waits for that; what is still there then is somebody's.
void AwaitReaped(pid_t pid) {
  constexpr std::chrono::milliseconds kNap{2};
  const auto give_up = steady_clock::now() + std::chrono::seconds(10);
  while (IsDying(pid) && steady_clock::now() < give_up) std::this_thread::sleep_for(kNap);
}

// Only system calls until execveat(2): a thread that does not exist here may hold any lock.
// `go`: told when its user namespace, if it has one of its own, has its ids; else -1.
[[noreturn]] void Become(int program, const char* root, bool sibling, pid_t parent, int channel,
                         int go) {
  char* const arguments[] = {const_cast<char*>("stasis-placeholder"), const_cast<char*>("hold"),
                             nullptr};
  char* const environment[] = {nullptr};
  char letter = 0;
  if (go >= 0) {
    const bool is_told = ::read(go, &letter, 1) == 1;
    const int error = is_told ? BecomeRootInside() : ECANCELED;
    if (error != 0) {
      (void)!::write(channel, &error, sizeof(error));
      ::_exit(127);
    }
  }
  if (!sibling) {
    // Nobody would end it if we were killed before it is seized. prctl(2): the order outlives execve(2);
    // RestoreConfinement takes it back. Not before other ids are taken, with which it goes.
    ::syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
    if (::syscall(SYS_getppid) != parent) ::_exit(127);
  }
  // Where it has no working directory of its own, that of its starter stays outside of the new root.
  const bool stays = root[0] == '/' && root[1] == '\0';
  if (stays || (::chroot(root) == 0 && ::chdir("/") == 0)) {
    ::syscall(SYS_execveat, program, "", arguments, environment, AT_EMPTY_PATH);
  }
  const int error = errno;
  (void)!::write(channel, &error, sizeof(error));
  ::_exit(127);
}

}  // namespace

Result<pid_t> SpawnPlaceholder(const ImageSource& source, const SpawnRequest& request) {
  ASSIGN_OR_RETURN(const CheckpointImages images, LoadCheckpoint(source));
  pid_t wanted = images.processes.front().pid();
  const bool is_init = wanted == 1;
  // The root's number may also be taken as the session or group of a descendant that is not reaped yet.
  if (!is_init) {
    for (const pid_t pid : images.TaskIds()) AwaitReaped(pid);
  }
  ASSIGN_OR_RETURN(const UniqueFd program, OpenAt(AT_FDCWD, request.placeholder_program, O_PATH));
  clone_args clone = {};
  ASSIGN_OR_RETURN(const std::optional<UserIds> ids, SavedUserNamespace(images, source));
  clone.flags = (request.sibling ? CLONE_PARENT : 0) | (is_init ? CLONE_NEWPID : 0) |
                (ids ? CLONE_NEWUSER : 0);
  clone.exit_signal = request.sibling ? 0 : SIGCHLD;
  clone.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
  clone.set_tid_size = 1;
  const pid_t parent = is_init ? 0 : ::getpid();  // one outside its pid namespace is 0 to it
  int channel[2];
  if (::pipe2(channel, O_CLOEXEC) != 0) {
    return SyscallError(errno, "pipe");
  }
  UniqueFd started(channel[0]), starting(channel[1]);
  if (::pipe2(channel, O_CLOEXEC) != 0) {
    return SyscallError(errno, "pipe");
  }
  UniqueFd waits(channel[0]), go(channel[1]);
  // It makes the new root of its mount namespace later, of what is here.
  const std::string root = images.HadOwnMounts() ? "/" : request.root;
  const long pid = ::syscall(SYS_clone3, &clone, sizeof(clone));
  if (pid == 0) {
    go.Reset();  // to see its end, should we be killed
    Become(program.get(), root.c_str(), request.sibling, parent, starting.get(),
           ids ? waits.get() : -1);
  }
  if (pid < 0) {
    if (errno == EEXIST) {
      return AlreadyExists("pid " + std::to_string(wanted) +
                           " is taken by another process; end that, or restore in a container");
    }
    return SyscallError(errno, "clone3 with pid " + std::to_string(wanted));
  }
  starting.Reset();
  if (ids) {
    const Status mapped = WriteMaps(static_cast<pid_t>(pid), *ids);
    if (!mapped.ok()) {
      go.Reset();  // it ends
      ::waitpid(static_cast<pid_t>(pid), nullptr, 0);
      return Annotate(mapped, "the user namespace that the tree had");
    }
    RETURN_IF_ERROR(WriteAll(go.get(), std::string_view("g")));
  }
  int error = 0;
  if (::read(started.get(), &error, sizeof(error)) == sizeof(error)) {  // else: closed by execve(2)
    ::waitpid(static_cast<pid_t>(pid), nullptr, 0);
    return SyscallError(error, "run " + request.placeholder_program + " in " + request.root);
  }
  return static_cast<pid_t>(pid);
}

}  // namespace stasis::engine
