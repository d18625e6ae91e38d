// Source  fork(2), setsid(2), setpgid(2), ptrace(2), credentials(7); tested on 6.18
// Rule    A session can only be inherited or founded: a child whose session is its parent's first one is
//         forked before the parent founds its own. A session or group whose leader is gone gets a stand-in
//         with the leader's pid, which ends when its members are in place.
// Rule    execve(2) is the only way to /proc/PID/exe without CAP_CHECKPOINT_RESTORE (PR_SET_MM_MAP), and
//         comes before a process has children, threads or memory.
#include "engine/tasks/process_tree.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "engine/base/io.h"
#include "engine/proc/task.h"

namespace stasis::engine {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr int kPidAttempts = 50;  // others may fork in the same pid namespace between our two steps
constexpr seconds kStopTimeout{10};

std::string ProcPath(pid_t pid) { return "/proc/" + std::to_string(pid); }
std::string PidText(const ProcessImage& image) { return "pid " + std::to_string(image.pid()); }

Result<TaskStatus> ReadStatus(pid_t tid) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, ProcPath(tid) + "/status"));
  return ParseTaskStatus(text);
}

// Until the stop that an interrupt, or being born traced, brings; what else comes first goes on.
Status WaitUntilStopped(Tracee& tracee) {
  while (true) {
    ASSIGN_OR_RETURN(const Stop stop,
                     WaitForStop(tracee.tid(), steady_clock::now() + kStopTimeout));
    switch (stop.kind) {
      case Stop::Kind::kTrap:
      case Stop::Kind::kGroup:
        return OkStatus();
      case Stop::Kind::kExited:
        return NotFound("tid " + std::to_string(tracee.tid()) + " has ended");
      default:
        RETURN_IF_ERROR(tracee.Continue(stop.kind == Stop::Kind::kSignal ? stop.signal : 0));
    }
  }
}

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
  RETURN_IF_ERROR(WaitUntilStopped(cloned.tracee));
  std::move(kill_half_made).Cancel();
  return cloned;
}

// clone3(2) with an id of our choice, for which nobody else can come in between. EPERM: the process has no
// CAP_CHECKPOINT_RESTORE over its pid namespace, which a container's does not.
Result<Tracee> CloneWithSetTid(RemoteSyscalls& remote, unsigned long flags, pid_t wanted) {
  constexpr unsigned long kExitSignal = 0xff;  // of clone(2)
  constexpr std::chrono::milliseconds kNap{20};
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

// Opens /proc/PID and the pidfd, and takes the leader over for calls in `area`.
Status MakeReady(RestoredProcess& process, const RemoteArea& area) {
  process.pidfd.Reset(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
  if (!process.pidfd) {
    return SyscallError(errno, "pidfd_open " + std::to_string(process.pid));
  }
  ASSIGN_OR_RETURN(process.proc, OpenAt(AT_FDCWD, ProcPath(process.pid), O_RDONLY | O_DIRECTORY));
  process.area = area;
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(process.leader, area));
  process.remote.emplace(std::move(remote));
  return OkStatus();
}

// The tree in the making. Index: place in images.processes.
class Builder {
 public:
  Builder(const CheckpointImages& images, PidReserver& reserver, const Furnish& furnish)
      : images_(images), reserver_(reserver), furnish_(furnish), made_(images.processes.size()) {
    for (std::size_t i = 0; i < images.processes.size(); ++i)
      by_pid_[images.processes[i].pid()] = i;
  }

  // Nothing half-made is let go: detached, it would run our calls' registers.
  ~Builder() {
    if (done_) return;
    for (const auto& process : made_) {
      if (process) ::kill(process->pid, SIGKILL);
    }
    for (const auto& [pid, stand_in] : stand_ins_) ::kill(stand_in.process.pid, SIGKILL);
  }

  Result<std::vector<RestoredProcess>> Build(RestoredProcess root) {
    // Children of stand-ins that end must come to the root, as orphans of a container come to pid 1.
    // (In a pid namespace of its own the root is the reaper anyway.)
    RETURN_IF_ERROR(
        root.remote
            ->Call("prctl PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            .status());
    ASSIGN_OR_RETURN(const TaskStatus status, ReadStatus(root.pid));
    root_session_ = status.ns_sid.back();
    made_[0].emplace(std::move(root));
    RETURN_IF_ERROR(furnish_(*made_[0], nullptr));
    RETURN_IF_ERROR(Grow(0, OwnSession(root_session_)));
    RETURN_IF_ERROR(JoinGroups());
    RETURN_IF_ERROR(EndStandIns());
    RETURN_IF_ERROR(
        made_[0]
            ->remote
            ->Call("prctl PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            .status());
    std::vector<RestoredProcess> processes;
    for (std::optional<RestoredProcess>& process : made_) processes.push_back(*std::move(process));
    done_ = true;
    return processes;
  }

 private:
  struct StandIn {
    RestoredProcess process;
    std::size_t parent = 0;
  };

  // The image's number for the session that the root was started in: 0 says "founded outside".
  pid_t OwnSession(pid_t session) const {
    const pid_t wanted = SessionOf(0);
    return wanted == images_.processes[0].pid() || wanted == 0 ? (wanted == session ? session : 0)
                                                               : wanted;
  }
  pid_t SessionOf(std::size_t i) const {
    return static_cast<pid_t>(images_.processes[i].tree.sid());
  }
  pid_t GroupOf(std::size_t i) const {
    return static_cast<pid_t>(images_.processes[i].tree.pgid());
  }

  // Process `i` stands, in session `born`. Forks what must be born before and after it founds its own.
  Status Grow(std::size_t i, pid_t born) {
    const pid_t pid = images_.processes[i].pid();
    const pid_t session = SessionOf(i);
    std::vector<std::size_t> before, after;
    std::map<pid_t, std::vector<std::size_t>> orphans;  // by the session of a leader that is gone
    for (std::size_t child = 1; child < images_.processes.size(); ++child) {
      if (images_.processes[child].parent() != pid) continue;
      const pid_t wanted = SessionOf(child);
      if (wanted == session || wanted == images_.processes[child].pid()) {
        after.push_back(child);
      } else if (wanted == born) {
        before.push_back(child);
      } else {
        orphans[wanted].push_back(child);
      }
    }
    for (const std::size_t child : before) RETURN_IF_ERROR(Fork(i, child, born));
    if (session == pid && born != pid) {
      RETURN_IF_ERROR(Annotate(made_[i]->remote->Call("setsid", SYS_setsid).status(),
                               PidText(images_.processes[i])));
    } else if (session != born) {
      return Unimplemented(PidText(images_.processes[i]) + " is in session " +
                           std::to_string(session) + ", which its parent was never in");
    }
    for (const std::size_t child : after) RETURN_IF_ERROR(Fork(i, child, session));
    for (const auto& [leader, children] : orphans) {
      RETURN_IF_ERROR(ForkOrphans(i, leader, children));
    }
    return OkStatus();
  }

  Status Fork(std::size_t parent, std::size_t child, pid_t session) {
    RETURN_IF_ERROR(ForkFrom(*made_[parent], images_.processes[child].pid(), made_[child]));
    return Place(child, *made_[parent]->image, session);
  }

  // Process `child` is a fork of one that runs the program of `like`.
  Status Place(std::size_t child, const ProcessImage& like, pid_t session) {
    RestoredProcess& process = *made_[child];
    const ProcessImage& image = images_.processes[child];
    process.image = &image;
    if (!image.zombie) {
      const bool executes =
          images_.Path(image.mm.exe_file_id()) != images_.Path(like.mm.exe_file_id());
      if (executes) RETURN_IF_ERROR(ExecuteProgram(process, images_));
      RETURN_IF_ERROR(furnish_(process, executes ? nullptr : &like));
    }
    return Grow(child, session);
  }

  Status ForkFrom(RestoredProcess& parent, pid_t pid, std::optional<RestoredProcess>& child) {
    Result<Tracee> tracee = CloneWithId(parent, reserver_, SIGCHLD, pid);
    if (!tracee.ok()) return tracee.status();
    child.emplace();
    child->pid = tracee->tid();
    child->leader = *std::move(tracee);
    return MakeReady(*child, parent.area);
  }

  Status AddStandIn(std::size_t parent, pid_t pid, long number) {
    std::optional<RestoredProcess> process;
    RETURN_IF_ERROR(ForkFrom(*made_[parent], pid, process));
    StandIn& stand_in = stand_ins_[pid];
    stand_in.process = *std::move(process);
    stand_in.parent = parent;
    return stand_in.process.remote->Call("setsid or setpgid", number, 0, 0).status();
  }

  Status ForkOrphans(std::size_t parent, pid_t leader, const std::vector<std::size_t>& children) {
    if (parent != 0 || by_pid_.contains(leader)) {
      return Unimplemented(PidText(images_.processes[children.front()]) + " is in session " +
                           std::to_string(leader) + ", which its parent was never in");
    }
    RETURN_IF_ERROR(AddStandIn(parent, leader, SYS_setsid));
    for (const std::size_t child : children) {
      RETURN_IF_ERROR(
          ForkFrom(stand_ins_[leader].process, images_.processes[child].pid(), made_[child]));
      RETURN_IF_ERROR(Place(child, *made_[parent]->image, leader));
    }
    return OkStatus();
  }

  Status JoinGroups() {
    for (int pass = 0; pass < 2; ++pass) {  // leaders first
      for (std::size_t i = 0; i < made_.size(); ++i) {
        const pid_t group = GroupOf(i);
        const bool leads = group == images_.processes[i].pid();
        if (leads != (pass == 0) || group == 0) continue;
        RETURN_IF_ERROR(JoinGroup(i, group));
      }
    }
    return OkStatus();
  }

  Status JoinGroup(std::size_t i, pid_t group) {
    ASSIGN_OR_RETURN(const TaskStatus status, ReadStatus(made_[i]->pid));
    if (status.ns_pgid.back() == group) return OkStatus();
    if (!by_pid_.contains(group) && !stand_ins_.contains(group)) {
      RETURN_IF_ERROR(AddStandIn(i, group, SYS_setpgid));
    }
    return Annotate(made_[i]->remote->Call("setpgid", SYS_setpgid, 0, group).status(),
                    PidText(images_.processes[i]) + ", process group " + std::to_string(group));
  }

  Status EndStandIns() {
    for (auto& [pid, stand_in] : stand_ins_) {
      (void)stand_in.process.remote->Call("exit_group", SYS_exit_group,
                                          0);  // it does not come back
      stand_in.process.remote->Abandon();
      RETURN_IF_ERROR(
          made_[stand_in.parent]->remote->Call("wait4", SYS_wait4, pid, 0, __WALL, 0).status());
    }
    stand_ins_.clear();
    return OkStatus();
  }

  const CheckpointImages& images_;
  PidReserver& reserver_;
  const Furnish& furnish_;
  std::vector<std::optional<RestoredProcess>> made_;
  std::map<pid_t, std::size_t> by_pid_;
  std::map<pid_t, StandIn> stand_ins_;
  pid_t root_session_ = 0;
  bool done_ = false;
};

// Ends by the signal of `status` as its default action does, without a core file.
Status EndBySignal(RestoredProcess& process, int signal) {
  RemoteSyscalls& remote = *process.remote;
  const rlimit64 none = {0, 0};
  ASSIGN_OR_RETURN(const std::uint64_t limit, remote.PutValue(none));
  RETURN_IF_ERROR(remote.Call("prlimit64", SYS_prlimit64, 0, RLIMIT_CORE, limit, 0).status());
  const Status sent = remote.Call("kill", SYS_kill, process.image->pid(), signal).status();
  if (signal == SIGKILL) return OkStatus();  // cannot be blocked: the call did not come back
  RETURN_IF_ERROR(sent);
  RETURN_IF_ERROR(process.leader.SetSignalMask(0));
  RETURN_IF_ERROR(process.leader.Continue());
  while (true) {
    ASSIGN_OR_RETURN(const Stop stop, WaitForStop(process.pid, steady_clock::now() + kStopTimeout));
    if (stop.kind == Stop::Kind::kExited) return OkStatus();
    RETURN_IF_ERROR(process.leader.Continue(stop.kind == Stop::Kind::kSignal ? stop.signal : 0));
  }
}

}  // namespace

unsigned RestoreOptions() {
  return PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_SUSPEND_SECCOMP |
         PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEEXEC;
}

Result<RestoredProcess> TakePlaceholder(pid_t placeholder, const ProcessImage& image,
                                        std::uint64_t area_address) {
  ASSIGN_OR_RETURN(Tracee tracee, Tracee::Seize(placeholder, RestoreOptions()));
  RETURN_IF_ERROR(tracee.Interrupt());
  RETURN_IF_ERROR(WaitUntilStopped(tracee));
  RestoredProcess process;
  process.image = &image;
  process.pid = placeholder;
  process.leader = std::move(tracee);
  ASSIGN_OR_RETURN(const RemoteArea area, MakeArea(process.leader, area_address));
  RETURN_IF_ERROR(MakeReady(process, area));
  return process;
}

Status ExecuteProgram(RestoredProcess& process, const CheckpointImages& images) {
  const std::string path = images.Path(process.image->mm.exe_file_id());
  const std::string context = PidText(*process.image) + ", program " + path;
  RemoteSyscalls& remote = *process.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote.Put(path));
  const std::uint64_t vector[2] = {name, 0};
  ASSIGN_OR_RETURN(const std::uint64_t argv, remote.PutValue(vector));
  const std::uint64_t environment = argv + sizeof(std::uint64_t);  // its terminating null
  const std::uint64_t address = process.area.address;
  if (Status status = remote.Call("execve", SYS_execve, name, argv, environment).status();
      !status.ok()) {
    return Annotate(MakeStatus(StatusCode::kFailedPrecondition, Message(status)), context);
  }
  remote.Abandon();
  process.remote.reset();

  const image::FileEntry* entry = images.File(image::FD_REG, process.image->mm.exe_file_id());
  struct stat st = {};
  if (::fstatat(process.proc.get(), "exe", &st, 0) != 0) {
    return SyscallError(errno, context);
  }
  if (entry != nullptr && entry->reg().has_size() &&
      entry->reg().size() != static_cast<std::uint64_t>(st.st_size)) {
    return FailedPrecondition(context + " has " + std::to_string(st.st_size) + " bytes, but had " +
                              std::to_string(entry->reg().size()) +
                              " at the checkpoint; use the same image");
  }
  Result<RemoteArea> area = MakeArea(process.leader, address);
  if (!area.ok()) return Annotate(area.status(), context);
  return MakeReady(process, *area);
}

Result<std::vector<RestoredProcess>> MakeProcesses(RestoredProcess root,
                                                   const CheckpointImages& images,
                                                   PidReserver& reserver, const Furnish& furnish) {
  return Builder(images, reserver, furnish).Build(std::move(root));
}

Result<Tracee> CloneWithId(RestoredProcess& process, PidReserver& reserver, unsigned long flags,
                           pid_t wanted) {
  Result<Tracee> chosen = CloneWithSetTid(*process.remote, flags, wanted);
  const int error = chosen.ok() ? 0 : ErrnoOf(chosen.status());
  if (error != EPERM && error != ENOSYS && error != EINVAL) return chosen;

  RemoteSyscalls& remote = *process.remote;
  for (int attempt = 0; attempt < kPidAttempts; ++attempt) {
    RETURN_IF_ERROR(reserver.MakeNext(wanted));
    ASSIGN_OR_RETURN(Cloned made, CloneStopped(remote, [&remote, flags] {
                       return remote.Call("clone", SYS_clone, flags, 0, 0, 0, 0);
                     }));
    if (made.id == wanted) return std::move(made.tracee);

    // Somebody else forked in between. A thread ends by itself, a process is killed and reaped.
    if ((flags & CLONE_THREAD) != 0) {
      ASSIGN_OR_RETURN(RemoteSyscalls thread, RemoteSyscalls::Begin(made.tracee, process.area));
      (void)thread.Call("exit", SYS_exit, 0);  // it does not come back
      thread.Abandon();
      made.tracee.Forget();
      continue;
    }
    const pid_t pid = made.tracee.tid();
    ::kill(pid, SIGKILL);
    (void)WaitForStop(pid, steady_clock::now() + kStopTimeout);  // reaps what the tracer sees
    made.tracee.Forget();
    RETURN_IF_ERROR(remote.Call("wait4", SYS_wait4, made.id, 0, __WALL, 0).status());
    RETURN_IF_ERROR(reserver.CheckFree(wanted));
  }
  return AlreadyExists("pid " + std::to_string(wanted) + " is taken each time by another process");
}

Status EndZombies(std::vector<RestoredProcess>& processes) {
  for (RestoredProcess& process : processes) {
    if (!process.image->zombie) continue;
    const image::TaskCoreEntry& task = process.image->leader().core.tc();
    RemoteSyscalls& remote = *process.remote;
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t comm, remote.Put(task.comm()));
    RETURN_IF_ERROR(remote.Call("prctl PR_SET_NAME", SYS_prctl, PR_SET_NAME, comm).status());
    const int status = static_cast<int>(task.exit_code());
    if (WIFSIGNALED(status)) {
      RETURN_IF_ERROR(Annotate(EndBySignal(process, WTERMSIG(status)), PidText(*process.image)));
      process.leader.Forget();
    } else {
      (void)remote.Call("exit_group", SYS_exit_group,
                        WEXITSTATUS(status));  // it does not come back
    }
    remote.Abandon();
  }
  return OkStatus();
}

}  // namespace stasis::engine
