// Source  fork(2), setsid(2), setpgid(2), ptrace(2), credentials(7); tested on 6.18
// Rule    A session can only be inherited or founded: fork_plan.h tells who forks whom, and when. A session
//         or group whose leader is gone gets a stand-in with the leader's pid, which ends when its members
//         are in place.
// Rule    execve(2) is the only way to /proc/PID/exe without CAP_CHECKPOINT_RESTORE (PR_SET_MM_MAP), and
//         comes before a process has children, threads or memory.
#include "engine/tasks/process_tree.h"

#include <fcntl.h>
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
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tasks/clone_task.h"
#include "engine/tasks/fork_plan.h"
#include "engine/tasks/security_label.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kStopTimeout{30};  // a disk that is busy keeps even execve(2) waiting

std::string ProcPath(pid_t pid) { return "/proc/" + std::to_string(pid); }
std::string PidText(const ProcessImage& image) { return "pid " + std::to_string(image.pid()); }

Result<TaskStatus> ReadStatus(pid_t tid) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, ProcPath(tid) + "/status"));
  return ParseTaskStatus(text);
}

// Opens /proc/PID and the pidfd, and takes the leader over for calls in `area`.
Status MakeReady(RestoredProcess& process, const RemoteArea& area) {
  process.pidfd.Reset(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
  if (!process.pidfd) {
    return SyscallError(errno, "pidfd_open " + std::to_string(process.pid));
  }
  ASSIGN_OR_RETURN(process.proc, OpenAt(AT_FDCWD, ProcPath(process.pid), O_RDONLY | O_DIRECTORY));
  process.area = area;
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(process.leader, area.place()));
  process.remote.emplace(std::move(remote));
  return OkStatus();
}

int ExitSignalOf(const ProcessImage& process) {
  const image::TaskCoreEntry& task = process.leader().core.tc();
  return task.has_stasis_exit_signal() ? static_cast<int>(task.stasis_exit_signal() & 0x7f)
                                       : SIGCHLD;
}

std::vector<PlannedProcess> ToPlan(std::span<const ProcessImage> processes) {
  std::vector<PlannedProcess> planned;
  std::map<pid_t, std::size_t> by_pid;
  for (const ProcessImage& process : processes) {
    by_pid[process.pid()] = planned.size();
    const auto parent = by_pid.find(process.parent());
    PlannedProcess& plan = planned.emplace_back();
    plan.pid = process.pid();
    plan.parent = parent == by_pid.end() ? 0 : parent->second;
    plan.session = static_cast<pid_t>(process.tree.sid());
    plan.exit_signal = ExitSignalOf(process);
    if (process.zombie) continue;
    plan.files_id = process.ids.files_id();
    plan.fs_id = process.ids.fs_id();
  }
  return planned;
}

// The tree in the making. Index: place in images.processes, then in the plan's extras.
class Builder {
 public:
  Builder(const CheckpointImages& images, const PathlessFiles& pathless, PidReserver& reserver,
          const std::function<Status(RestoredProcess&)>& prepare, const Furnish& furnish,
          const Lead& lead)
      : images_(images),
        pathless_(pathless),
        reserver_(reserver),
        prepare_(prepare),
        furnish_(furnish),
        lead_(lead) {
    for (std::size_t i = 0; i < images.processes.size(); ++i)
      by_pid_[images.processes[i].pid()] = i;
  }

  Status Build(RestoredProcess root) {
    made_.emplace_back(std::move(root));
    ASSIGN_OR_RETURN(const TaskStatus status, ReadStatus(made_[0]->pid));
    ASSIGN_OR_RETURN(plan_, PlanForks(ToPlan(images_.processes), OwnSession(status.ns_sid.back())));
    made_.resize(images_.processes.size() + plan_.extras.size());
    RETURN_IF_ERROR(furnish_(*made_[0], nullptr));
    if (status.ns_sid.back() == images_.processes[0].pid()) RETURN_IF_ERROR(TakeLead(0));
    for (const ForkPlan::Step& step : plan_.steps) RETURN_IF_ERROR(Do(step));
    RETURN_IF_ERROR(JoinGroups());
    RETURN_IF_ERROR(EndStandIns());
    for (const ForkPlan::End& end : plan_.ends) RETURN_IF_ERROR(EndExtra(end));
    return OkStatus();
  }

  // All that are there. Nothing half-made is let go: detached, it would run our calls' registers.
  std::vector<RestoredProcess> Take() {
    std::vector<RestoredProcess> processes;
    for (std::optional<RestoredProcess>& process : made_) {
      if (process) processes.push_back(*std::move(process));
    }
    for (auto& [pid, stand_in] : stand_ins_) processes.push_back(std::move(stand_in.process));
    return processes;
  }

 private:
  struct StandIn {
    RestoredProcess process;
    std::size_t parent = 0;
  };

  // The image's number for the session that the root was started in: 0 says "founded outside".
  pid_t OwnSession(pid_t session) const {
    const auto wanted = static_cast<pid_t>(images_.processes[0].tree.sid());
    return wanted == images_.processes[0].pid() || wanted == 0 ? (wanted == session ? session : 0)
                                                               : wanted;
  }
  pid_t GroupOf(std::size_t i) const {
    return static_cast<pid_t>(images_.processes[i].tree.pgid());
  }

  Status Do(const ForkPlan::Step& step) {
    if (step.kind == ForkPlan::Step::Kind::kSetsid) {
      RETURN_IF_ERROR(Annotate(made_[step.node]->remote->Call("setsid", SYS_setsid).status(),
                               "pid " + std::to_string(made_[step.node]->pid)));
      return TakeLead(step.node);
    }
    const bool extra = step.node >= images_.processes.size();
    pid_t pid = extra ? plan_.extras[step.node - images_.processes.size()].pid
                      : images_.processes[step.node].pid();
    if (pid == 0) {
      ASSIGN_OR_RETURN(pid, FreePid());
    }
    const auto signal =
        static_cast<unsigned long>(extra ? SIGCHLD : ExitSignalOf(images_.processes[step.node]));
    const unsigned long flags = (step.sibling ? CLONE_PARENT : signal) | step.shared;
    RestoredProcess* parent =
        step.sibling ? &*made_[by_pid_[images_.processes[step.node].parent()]] : nullptr;
    RETURN_IF_ERROR(ForkFrom(*made_[step.source], pid, flags, made_[step.node], parent));
    return extra ? OkStatus() : Place(step.node, images_.processes[step.like], step.shared);
  }

  Status TakeLead(std::size_t node) {
    if (node >= images_.processes.size() || images_.processes[node].zombie) return OkStatus();
    return Annotate(lead_(*made_[node]), PidText(images_.processes[node]));
  }

  // Process `child` is a fork of one that runs the program of `like`.
  Status Place(std::size_t child, const ProcessImage& like, unsigned long shared) {
    RestoredProcess& process = *made_[child];
    const ProcessImage& image = images_.processes[child];
    process.image = &image;
    if (image.zombie) return OkStatus();
    const bool executes = !SameProgram(image, like);
    if (executes) {
      if ((shared & CLONE_FILES) != 0) {
        return Unimplemented(PidText(image) + " shares its descriptors with another program");
      }
      RETURN_IF_ERROR(Annotate(prepare_(process), PidText(image)));
      RETURN_IF_ERROR(ExecuteProgram(process, images_, pathless_));
    }
    return furnish_(process, executes ? nullptr : &like);
  }

  // At one path there may be a program, and those that were deleted from there.
  bool SameProgram(const ProcessImage& a, const ProcessImage& b) const {
    const std::uint32_t one = a.mm.exe_file_id(), other = b.mm.exe_file_id();
    if (pathless_.contains(one) || pathless_.contains(other)) return one == other;
    return images_.Path(one) == images_.Path(other);
  }

  Status ForkFrom(RestoredProcess& source, pid_t pid, unsigned long flags,
                  std::optional<RestoredProcess>& child, RestoredProcess* parent = nullptr) {
    Result<Tracee> tracee = CloneWithId(source, reserver_, flags, pid, parent);
    if (!tracee.ok()) return tracee.status();
    child.emplace();
    child->pid = tracee->tid();
    child->leader = *std::move(tracee);
    return MakeReady(*child, source.area);
  }

  // One that no task, session or group of the checkpoint has.
  Result<pid_t> FreePid() {
    constexpr pid_t kFirst = 301;  // below RESERVED_PIDS (300) pids are seldom free
    constexpr pid_t kLimit = 4 << 20;
    if (taken_.empty()) {
      for (const ProcessImage& process : images_.processes) {
        for (const ThreadImage& thread : process.threads) taken_.insert(thread.tid);
        taken_.insert(static_cast<pid_t>(process.tree.pgid()));
        taken_.insert(static_cast<pid_t>(process.tree.sid()));
      }
    }
    for (pid_t pid = kFirst; pid < kLimit; ++pid) {
      if (!taken_.insert(pid).second) continue;
      const Status free = reserver_.CheckFree(pid);
      if (free.ok()) return pid;
      if (free.code() != StatusCode::kAlreadyExists) return free;
    }
    return ResourceExhausted("no free pid for a helper process");
  }

  // First those whose number others need lead a group, and at last they leave it for their own.
  Status JoinGroups() {
    std::set<pid_t> groups;
    for (std::size_t i = 0; i < images_.processes.size(); ++i) groups.insert(GroupOf(i));
    const auto leads = [&](std::size_t i) { return groups.contains(images_.processes[i].pid()); };
    for (std::size_t i = 0; i < images_.processes.size(); ++i) {
      if (leads(i)) RETURN_IF_ERROR(JoinGroup(i, images_.processes[i].pid()));
    }
    for (const bool leaders : {false, true}) {
      for (std::size_t i = 0; i < images_.processes.size(); ++i) {
        if (leads(i) == leaders && GroupOf(i) != 0) RETURN_IF_ERROR(JoinGroup(i, GroupOf(i)));
      }
    }
    return OkStatus();
  }

  Status JoinGroup(std::size_t i, pid_t group) {
    ASSIGN_OR_RETURN(const TaskStatus status, ReadStatus(made_[i]->pid));
    if (status.ns_pgid.back() == group) return OkStatus();
    if (!by_pid_.contains(group) && !stand_ins_.contains(group) && !IsExtra(group)) {
      RETURN_IF_ERROR(AddStandIn(i, group));
    }
    return Annotate(made_[i]->remote->Call("setpgid", SYS_setpgid, 0, group).status(),
                    PidText(images_.processes[i]) + ", process group " + std::to_string(group));
  }

  bool IsExtra(pid_t pid) const {
    return std::ranges::find(plan_.extras, pid, &ForkPlan::Extra::pid) != plan_.extras.end();
  }

  // A leader for process group `pid`, in the session of `parent`.
  Status AddStandIn(std::size_t parent, pid_t pid) {
    std::optional<RestoredProcess> process;
    RETURN_IF_ERROR(ForkFrom(*made_[parent], pid, SIGCHLD, process));
    StandIn& stand_in = stand_ins_[pid];
    stand_in.process = *std::move(process);
    stand_in.parent = parent;
    return stand_in.process.remote->Call("setpgid", SYS_setpgid, 0, 0).status();
  }

  Status EndStandIns() {
    for (auto& [pid, stand_in] : stand_ins_) {
      RETURN_IF_ERROR(End(stand_in.process, *made_[stand_in.parent]));
    }
    stand_ins_.clear();
    return OkStatus();
  }

  // Its children go to the nearest subreaper above it, or to the init of a pid namespace.
  Status EndExtra(const ForkPlan::End& end) {
    const auto adopt = [&](int on) {
      return made_[end.reaper]
          ->remote->Call("PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)
          .status();
    };
    RETURN_IF_ERROR(adopt(1));
    RETURN_IF_ERROR(End(*made_[end.node], *made_[end.waiter]));
    made_[end.node].reset();
    return adopt(0);
  }

  static Status End(RestoredProcess& process, RestoredProcess& parent) {
    ASSIGN_OR_RETURN(const TaskStatus status, ReadStatus(process.pid));
    (void)process.remote->Call("exit_group", SYS_exit_group, 0);  // it does not come back
    process.remote->Abandon();
    process.leader.Forget();
    return parent.remote->Call("wait4", SYS_wait4, status.ns_pid.back(), 0, __WALL, 0).status();
  }

  const CheckpointImages& images_;
  const PathlessFiles& pathless_;
  PidReserver& reserver_;
  const std::function<Status(RestoredProcess&)>& prepare_;
  const Furnish& furnish_;
  const Lead& lead_;
  std::vector<std::optional<RestoredProcess>> made_;
  std::map<pid_t, std::size_t> by_pid_;
  std::map<pid_t, StandIn> stand_ins_;  // of process groups
  std::set<pid_t> taken_;               // by FreePid
  ForkPlan plan_;
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
  RETURN_IF_ERROR(
      Annotate(WaitUntilStopped(tracee, steady_clock::now() + kStopTimeout), "placeholder"));
  RestoredProcess process;
  process.image = &image;
  process.pid = placeholder;
  process.leader = std::move(tracee);
  ASSIGN_OR_RETURN(const RemoteArea area, MakeArea(process.leader, area_address));
  RETURN_IF_ERROR(MakeReady(process, area));
  return process;
}

Result<int> SendInto(RestoredProcess& process, int our_fd) {
  ASSIGN_OR_RETURN(FdChannel channel, FdChannel::Open(*process.remote, process.pidfd.get()));
  ASSIGN_OR_RETURN(const std::vector<int> numbers,
                   channel.Send(*process.remote, std::span(&our_fd, 1)));
  RETURN_IF_ERROR(channel.Close(*process.remote));
  return numbers.front();
}

Result<UniqueFd> TakeFrom(RestoredProcess& process, int number) {
  ASSIGN_OR_RETURN(UniqueFd fd, GetFd(process.pidfd.get(), number));
  RETURN_IF_ERROR(process.remote->Call("close", SYS_close, number).status());
  return fd;
}

Status ExecuteProgram(RestoredProcess& process, const CheckpointImages& images,
                      const PathlessFiles& pathless) {
  const std::string path = images.Path(process.image->mm.exe_file_id());
  const std::string context = PidText(*process.image) + ", program " + path;
  RETURN_IF_ERROR(Annotate(ExecuteUnconfined(process), context));
  RemoteSyscalls& remote = *process.remote;
  int program = -1;
  if (const auto found = pathless.find(process.image->mm.exe_file_id()); found != pathless.end()) {
    ASSIGN_OR_RETURN(program, SendInto(process, found->second.get()));
  }
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote.Put(path));
  const std::uint64_t vector[2] = {name, 0};
  ASSIGN_OR_RETURN(const std::uint64_t argv, remote.PutValue(vector));
  const std::uint64_t environment = argv + sizeof(std::uint64_t);  // its terminating null
  const std::uint64_t address = process.area.address;
  Result<std::uint64_t> executed = 0;
  if (program >= 0) {
    ASSIGN_OR_RETURN(const std::uint64_t nothing, remote.Put(std::string_view()));
    executed =
        remote.Call("execveat", SYS_execveat, program, nothing, argv, environment, AT_EMPTY_PATH);
  } else {
    executed = remote.Call("execve", SYS_execve, name, argv, environment);
  }
  if (const Status status = executed.status(); !status.ok()) {
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

Status MakeProcesses(std::vector<RestoredProcess>& processes, const CheckpointImages& images,
                     const PathlessFiles& pathless, PidReserver& reserver,
                     const std::function<Status(RestoredProcess&)>& prepare, const Furnish& furnish,
                     const Lead& lead) {
  Builder builder(images, pathless, reserver, prepare, furnish, lead);
  Status status = builder.Build(std::move(processes.front()));
  processes = builder.Take();
  return status;
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
