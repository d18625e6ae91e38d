// Source  clone(2), clone3(2), pid_namespaces(7); tested on 6.18
// Rule    clone3(2) takes no exit signal with CLONE_PARENT: that of the caller is the child's.
#include "engine/tasks/clone_task.h"

#include <absl/cleanup/cleanup.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/tracee/call_batch.h"

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

// Makes threads in one run of calls. `threads`, one for each of `wanted`, is without a tid where the id is taken, and
// throughout where the process may choose none.
Status CloneAtOnce(RestoredProcess& process, unsigned long flags, std::span<const pid_t> wanted,
                   std::vector<Tracee>& threads) {
  struct Chosen {
    clone_args arguments = {};
    pid_t id = 0;
  };
  RemoteSyscalls& remote = *process.remote;
  CallBatch batch;
  std::vector<std::size_t> made;  // of `wanted`, in the order of the calls
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    Chosen chosen = {.id = wanted[i]};
    chosen.arguments.flags = flags;
    chosen.arguments.set_tid = offsetof(Chosen, id);
    chosen.arguments.set_tid_size = 1;
    batch.AddPointing("clone3", SYS_clone3, {CallBatch::kHere, sizeof(clone_args)}, chosen,
                      offsetof(Chosen, arguments) + offsetof(clone_args, set_tid),
                      [&made, i](std::int64_t) { made.push_back(i); });
  }
  std::vector<pid_t> ids;  // as we see them
  remote.on_event = [&](const Stop&) -> Status {
    ASSIGN_OR_RETURN(const unsigned long message, remote.tracee().EventMessage());
    ids.push_back(static_cast<pid_t>(message));
    return OkStatus();
  };
  const absl::Cleanup forget = [&remote] { remote.on_event = nullptr; };
  const auto make = [&]() -> Status {
    ASSIGN_OR_RETURN(const OneRun how, RunOf(process));
    RETURN_IF_ERROR(batch.Begin(remote, how));
    RETURN_IF_ERROR(batch.End());
    return made.size() == ids.size() ? OkStatus() : Internal("a thread was made without a stop");
  };
  Status status = make();
  const bool is_whole = status.ok();  // else nobody has said which calls they are of
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Tracee& thread = threads[is_whole ? made[i] : i];
    thread = Tracee::Adopt(ids[i]);
    if (status.ok()) status = WaitUntilStopped(thread, steady_clock::now() + kStopTimeout);
  }
  return status;
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

Status CloneThreads(RestoredProcess& process, PidReserver& reserver, unsigned long flags,
                    std::span<const pid_t> wanted, std::vector<Tracee>& threads) {
  constexpr std::size_t kAtOnce = 1024;
  threads.reserve(wanted.size());
  bool may_choose = true;
  while (!wanted.empty()) {
    // The first one tells whether the process may choose ids: to be refused costs as much as a thread.
    const std::size_t count = threads.empty() ? 1 : std::min(wanted.size(), kAtOnce);
    std::vector<Tracee> made(count);
    Status status;
    if (may_choose) status = CloneAtOnce(process, flags, wanted.first(count), made);
    may_choose = std::ranges::any_of(made, [](const Tracee& thread) { return thread.tid() != 0; });
    for (std::size_t i = 0; i < count; ++i) {
      if (status.ok() && made[i].tid() == 0) {
        Result<Tracee> thread = CloneWithId(process, reserver, flags, wanted[i]);
        status = Annotate(thread.status(), "tid " + std::to_string(wanted[i]));
        if (status.ok()) made[i] = *std::move(thread);
      }
      if (made[i].tid() != 0) threads.push_back(std::move(made[i]));
    }
    RETURN_IF_ERROR(status);
    wanted = wanted.subspan(count);
  }
  return OkStatus();
}

}  // namespace stasis::engine
