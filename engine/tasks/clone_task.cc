// Source  clone(2), clone3(2), pid_namespaces(7); tested on 6.18
// Rule    clone3(2) takes no exit signal with CLONE_PARENT: that of the caller is the child's.
#include "engine/tasks/clone_task.h"

#include <absl/cleanup/cleanup.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

namespace stasis::engine {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr int kPidAttempts = 50;  // others may fork in the same pid namespace between our two steps
constexpr seconds kStopTimeout{30};
constexpr std::chrono::milliseconds kNap{20};  // between attempts

struct Cloned {
  Tracee tracee;  // seized by the kernel, and stopped
  pid_t id = 0;   // as the process sees it
};

// `invoke` runs a call in `remote` that clones.
template <typename Invoke>
Result<Cloned> CloneStopped(RemoteSyscalls& remote, Invoke invoke) {
  pid_t made = 0;
  remote.on_event = [&](const Stop&) -> Status {
    ASSIGN_OR_RETURN(const unsigned long message, remote.tracee().EventMessage());
    made = static_cast<pid_t>(message);
    return OkStatus();
  };
  const Result<std::uint64_t> id = invoke();
  remote.on_event = nullptr;
  absl::Cleanup kill_half_made = [&made] {
    if (made != 0) ::kill(made, SIGKILL);
  };
  RETURN_IF_ERROR(id.status());
  Cloned cloned = {.tracee = Tracee::Adopt(made), .id = static_cast<pid_t>(*id)};
  RETURN_IF_ERROR(WaitUntilStopped(cloned.tracee, steady_clock::now() + kStopTimeout));
  std::move(kill_half_made).Cancel();
  return cloned;
}

// clone3(2) with an id of our choice, for which nobody else can come in between. EPERM: the process has no
// CAP_CHECKPOINT_RESTORE over its pid namespace, which a container's does not.
Result<Tracee> CloneWithSetTid(RemoteSyscalls& remote, unsigned long flags, pid_t wanted) {
  constexpr unsigned long kExitSignal = 0xff;  // of clone(2)
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t id, remote.PutValue(wanted));
  clone_args arguments = {};
  arguments.flags = flags & ~kExitSignal;
  arguments.exit_signal = flags & kExitSignal;
  arguments.set_tid = id;
  arguments.set_tid_size = 1;
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(arguments));
  for (int attempt = 0;; ++attempt) {
    Result<Cloned> made = CloneStopped(remote, [&remote, at] {
      return remote.Call("clone3", SYS_clone3, at, sizeof(clone_args));
    });
    if (made.ok()) return std::move(made->tracee);
    if (ErrnoOf(made.status()) != EEXIST) return made.status();
    if (attempt == kPidAttempts) {
      return AlreadyExists("pid " + std::to_string(wanted) + " is taken by another process");
    }
    std::this_thread::sleep_for(kNap);  // for a program that ends soon
  }
}

}  // namespace

Result<Tracee> CloneWithId(RestoredProcess& process, PidReserver& reserver, unsigned long flags,
                           pid_t wanted, RestoredProcess* parent) {
  Result<Tracee> chosen = CloneWithSetTid(*process.remote, flags, wanted);
  const int error = chosen.ok() ? 0 : ErrnoOf(chosen.status());
  if (error != EPERM && error != ENOSYS && error != EINVAL) return chosen;

  RemoteSyscalls& remote = *process.remote;
  for (int attempt = 0; attempt < kPidAttempts; ++attempt) {
    RETURN_IF_ERROR(reserver.MakeNext(wanted));
    ASSIGN_OR_RETURN(Cloned made, CloneStopped(remote, [&remote, flags] {
                       const unsigned long signal = (flags & CLONE_PARENT) != 0 ? SIGCHLD : 0;
                       return remote.Call("clone", SYS_clone, flags | signal, 0, 0, 0, 0);
                     }));
    if (made.id == wanted) return std::move(made.tracee);

    // Somebody else forked in between, or the number is still that of a task which ends. A thread ends by
    // itself, a process is killed and reaped.
    if (attempt > 0) std::this_thread::sleep_for(kNap);
    if ((flags & CLONE_THREAD) != 0) {
      ASSIGN_OR_RETURN(RemoteSyscalls thread,
                       RemoteSyscalls::Begin(made.tracee, process.area.place()));
      (void)thread.Call("exit", SYS_exit, 0);  // it does not come back
      thread.Abandon();
      made.tracee.Forget();
      continue;
    }
    const pid_t pid = made.tracee.tid();
    ::kill(pid, SIGKILL);
    (void)WaitForStop(pid, steady_clock::now() + kStopTimeout);  // reaps what the tracer sees
    made.tracee.Forget();
    RemoteSyscalls& waiter = parent == nullptr ? remote : *parent->remote;
    RETURN_IF_ERROR(waiter.Call("wait4", SYS_wait4, made.id, 0, __WALL, 0).status());
    RETURN_IF_ERROR(reserver.CheckFree(wanted));
  }
  return AlreadyExists("pid " + std::to_string(wanted) + " is taken each time by another process");
}

}  // namespace stasis::engine
