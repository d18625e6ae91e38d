// Source  kcmp(2), credentials(7), pid_namespaces(7), ptrace(2); tested on 6.18
// Rule    The numbers of a task are those of its own pid namespace. There, a session or group whose
//         leader is outside of the namespace is 0.
// Rule    A traced task that was killed stays a zombie until its tracer has waited for it, and the
//         parent hears of it only then.
#include "engine/tasks/dump_tree.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/tasks/dump_outside.h"
#include "engine/tasks/fork_plan.h"

namespace stasis::engine {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr std::uint32_t kKernelThread = 0x00200000;  // PF_KTHREAD
constexpr seconds kDeathTimeout{10};

Result<TaskStat> ReadStat(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/stat"));
  return ParseTaskStat(text);
}

// 0 the same, 1 and 2 an order, -1 an error.
long Compare(pid_t a, pid_t b, int type) { return ::syscall(SYS_kcmp, a, b, type, 0, 0); }

// The first of `pids` that shares `type` with each, perhaps itself. Not by std::sort, which runs out of its range
// when the order fails it: of a process that ends meanwhile kcmp(2) tells none.
std::map<pid_t, pid_t> FirstSharing(const std::vector<pid_t>& pids, int type) {
  const auto before = [type](pid_t a, pid_t b) { return Compare(a, b, type) == 1; };
  std::set<pid_t, decltype(before)> different(before);
  std::map<pid_t, pid_t> first;
  for (const pid_t pid : pids) {
    const auto [like, is_new] = different.insert(pid);
    const bool shared = !is_new && Compare(*like, pid, type) == 0;
    first[pid] = shared ? *like : pid;
  }
  return first;
}

Status CheckNotShared(const std::vector<const FrozenProcess*>& living, int type, const char* what) {
  std::vector<pid_t> pids;
  pids.reserve(living.size());
  for (const FrozenProcess* process : living) pids.push_back(process->pid);
  const std::map<pid_t, pid_t> first = FirstSharing(pids, type);
  for (const FrozenProcess* process : living) {
    const pid_t other = first.at(process->pid);
    if (other == process->pid) continue;
    const auto found = std::ranges::find(living, other, &FrozenProcess::pid);
    return Unimplemented(Name(**found) + " and " + Name(*process) + " share their " + what +
                         " (clone(2)), which cannot be checkpointed");
  }
  return OkStatus();
}

// By pid, numbers that are equal for processes that share `type`.
std::map<pid_t, std::uint32_t> NumberShared(const std::vector<DumpedProcess>& processes, int type) {
  std::vector<pid_t> order;
  for (const DumpedProcess& process : processes) {
    if (!process.zombie) order.push_back(process.frozen->pid);
  }
  const std::map<pid_t, pid_t> first = FirstSharing(order, type);
  std::map<pid_t, std::uint32_t> numbers;
  std::uint32_t number = 1;  // 1 is CRIU's own
  for (const DumpedProcess& process : processes) {
    if (process.zombie) continue;
    const pid_t pid = process.frozen->pid;
    ++number;
    numbers[pid] = first.at(pid) == pid ? number : numbers[first.at(pid)];
  }
  return numbers;
}

Result<struct stat> StatLink(const FrozenProcess& process, const char* link) {
  struct stat st = {};
  if (::fstatat(process.proc.get(), link, &st, 0) != 0) {
    return SyscallError(errno, Name(process) + ": stat " + link);
  }
  return st;
}

Status CheckLinks(const FrozenProcess& process) {
  ASSIGN_OR_RETURN(const struct stat root, StatLink(process, "root"));
  if (root.st_nlink > 0) return OkStatus();
  return Unimplemented(Name(process) +
                       ": its root directory was deleted, which cannot be checkpointed");
}

// `id` as images have it: 0 for a leader outside of the tree that the root too has.
std::uint32_t GroupNumber(pid_t id, pid_t of_root, const std::set<pid_t>& pids) {
  if (id == of_root && !pids.contains(id)) return 0;
  return static_cast<std::uint32_t>(id);
}

pid_t Last(const NamespaceIds& numbers) { return numbers.empty() ? 0 : numbers.back(); }

bool DescendsFrom(pid_t pid, const std::set<pid_t>& pids) {
  while (pid > 0 && !pids.contains(pid)) {
    const Result<TaskStat> stat = ReadStat(pid);
    pid = stat.ok() ? stat->ppid : 0;
  }
  return pid > 0;
}

Status WaitForDeath(Tracee& tracee, steady_clock::time_point deadline) {
  while (tracee.tid() != 0) {
    const Result<Stop> stop = WaitForStop(tracee.tid(), deadline);
    if (stop.status().code() == StatusCode::kNotFound ||
        (stop.ok() && stop->kind == Stop::Kind::kExited)) {
      tracee.Forget();
      return OkStatus();
    }
    RETURN_IF_ERROR(stop.status());
  }
  return OkStatus();
}

Status SignalAll(const FrozenTree& tree, int signal) {
  for (const FrozenProcess& process : tree.processes()) {
    if (process.zombie) continue;
    if (::kill(process.pid, signal) != 0 && errno != ESRCH) {
      return SyscallError(errno, "kill " + Name(process));
    }
  }
  return OkStatus();
}

}  // namespace

std::string Name(const FrozenProcess& process) {
  return "pid " + std::to_string(process.ns_pid) + " (" + process.status.name + ")";
}

std::string Name(const FrozenThread& thread) { return "tid " + std::to_string(thread.ns_tid()); }

Status CheckRoot(pid_t root) {
  if (root <= 0) return InvalidArgument("a process id is a positive number");
  const std::string name = "pid " + std::to_string(root);
  const auto text = ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(root) + "/status");
  if (text.status().code() == StatusCode::kNotFound) return NotFound("no process with " + name);
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const TaskStatus status, ParseTaskStatus(*text));
  if (status.tgid != root) {
    return InvalidArgument(name + " is a thread of process " + std::to_string(status.tgid));
  }
  ASSIGN_OR_RETURN(const TaskStat stat, ReadStat(root));
  if ((stat.flags & kKernelThread) != 0) return InvalidArgument(name + " is a kernel thread");
  for (pid_t pid = ::getpid(); pid > 0;) {
    if (pid == root) {
      return InvalidArgument(name +
                             " is, or has among its descendants, the process that is to "
                             "checkpoint it");
    }
    ASSIGN_OR_RETURN(const TaskStat ancestor, ReadStat(pid));
    pid = ancestor.ppid;
  }
  return OkStatus();
}

Status CheckTree(const FrozenTree& tree) {
  std::vector<const FrozenProcess*> living;
  for (const FrozenProcess& process : tree.processes()) {
    if (!process.zombie) living.push_back(&process);
  }
  RETURN_IF_ERROR(CheckNotShared(living, KCMP_VM, "memory"));
  RETURN_IF_ERROR(CheckNotShared(living, KCMP_SIGHAND, "signal handlers"));
  for (const FrozenProcess* process : living) {
    RETURN_IF_ERROR(CheckLinks(*process));
  }
  return OkStatus();
}

Status CheckShares(const FrozenProcess& process, const FrozenThread& thread) {
  if (thread.tid() == process.pid) return OkStatus();
  for (const int type : {KCMP_FILES, KCMP_FS}) {
    const long order = Compare(process.pid, thread.tid(), type);
    if (order < 0) {
      return SyscallError(errno, "kcmp");
    }
    if (order != 0) {
      return Unimplemented("has descriptors or a working directory of its own (unshare(2))");
    }
  }
  return OkStatus();
}

void NumberTasks(std::vector<DumpedProcess>& processes, const NamespaceDumper& namespaces) {
  std::map<pid_t, pid_t> ns_pids = {{0, 0}};
  std::set<pid_t> pids;
  for (const DumpedProcess& process : processes) {
    ns_pids[process.frozen->pid] = process.frozen->ns_pid;
    pids.insert(process.frozen->ns_pid);
  }
  const TaskStatus& root = processes.front().frozen->status;
  std::map<pid_t, std::uint32_t> tables = NumberShared(processes, KCMP_FILES);
  std::map<pid_t, std::uint32_t> places = NumberShared(processes, KCMP_FS);
  std::uint32_t number = 1;  // 1 is CRIU's own
  for (DumpedProcess& process : processes) {
    const FrozenProcess& frozen = *process.frozen;
    if (frozen.stat.exit_signal != SIGCHLD && frozen.parent != 0) {
      image::TaskCoreEntry& core = *process.threads.front().core.mutable_tc();
      core.set_stasis_exit_signal(static_cast<std::uint32_t>(frozen.stat.exit_signal));
    }
    process.tree.set_pid(static_cast<std::uint32_t>(frozen.ns_pid));
    process.tree.set_ppid(static_cast<std::uint32_t>(ns_pids[frozen.parent]));
    process.tree.set_pgid(GroupNumber(Last(frozen.status.ns_pgid), Last(root.ns_pgid), pids));
    process.tree.set_sid(GroupNumber(Last(frozen.status.ns_sid), Last(root.ns_sid), pids));
    for (const FrozenThread& thread : frozen.threads) {
      process.tree.add_threads(static_cast<std::uint32_t>(thread.ns_tid()));
    }
    if (frozen.zombie) {
      process.tree.add_threads(process.tree.pid());
      continue;
    }
    ++number;
    process.ids.set_vm_id(number);
    process.ids.set_files_id(tables[frozen.pid]);
    process.ids.set_fs_id(places[frozen.pid]);
    process.ids.set_sighand_id(number);
    namespaces.NumberProcess(frozen.pid, process.ids);
  }
}

Status CheckForks(const std::vector<DumpedProcess>& processes) {
  std::map<pid_t, std::size_t> by_pid;
  std::vector<PlannedProcess> planned;
  for (const DumpedProcess& process : processes) {
    const image::PstreeEntry& tree = process.tree;
    by_pid[static_cast<pid_t>(tree.pid())] = planned.size();
    planned.push_back(
        {.pid = static_cast<pid_t>(tree.pid()),
         .parent = by_pid[static_cast<pid_t>(tree.ppid())],
         .session = static_cast<pid_t>(tree.sid()),
         .files_id = process.zombie ? 0 : process.ids.files_id(),
         .fs_id = process.zombie ? 0 : process.ids.fs_id(),
         .exit_signal = process.frozen->parent == 0 ? SIGCHLD : process.frozen->stat.exit_signal});
  }
  const PlannedProcess& root = planned.front();
  return PlanForks(planned, root.session == root.pid ? 0 : root.session).status();
}

std::vector<std::uint32_t> TableIds(const std::vector<DumpedProcess>& processes) {
  std::vector<std::uint32_t> ids;
  ids.reserve(processes.size());
  for (const DumpedProcess& process : processes) {
    ids.push_back(process.zombie ? 0 : process.ids.files_id());
  }
  return ids;
}

std::vector<std::string> NameStrangers(const std::set<pid_t>& pids,
                                       const NamespaceDumper& namespaces) {
  std::vector<std::string> notes;
  if (!namespaces.has_own_pid()) return notes;
  std::error_code error;
  auto entry = std::filesystem::directory_iterator("/proc", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    pid_t pid = 0;
    std::from_chars(name.data(), name.data() + name.size(), pid);
    struct stat st = {};
    if (pid == 0 || ::stat(("/proc/" + name + "/ns/pid").c_str(), &st) != 0 ||
        st.st_ino != namespaces.pid_namespace() || DescendsFrom(pid, pids)) {
      continue;
    }
    const Result<TaskStat> stat = ReadStat(pid);
    if (!stat.ok()) continue;  // it has ended
    notes.push_back("pid " + name + " (" + stat->comm +
                    ") runs beside the container's own processes (as `exec` makes them) and is not "
                    "part of the checkpoint");
  }
  return notes;
}

Status WriteTaskImages(std::vector<DumpedProcess>& processes, const UserIds& ids, ImageSink& sink) {
  ImageFileBuilder tree("pstree");
  for (DumpedProcess& process : processes) {
    RETURN_IF_ERROR(tree.Add(process.tree));
    for (std::size_t i = 0; i < process.threads.size(); ++i) {
      const auto tid = process.tree.threads(static_cast<int>(i));
      // Of thousands only one at a time is whole.
      const image::CoreEntry core = TakeCore(process.threads[i], ids);
      RETURN_IF_ERROR(PutOne(sink, ImageName("core", tid), "core", core));
    }
    if (process.zombie) continue;
    const std::uint64_t pid = process.tree.pid();
    for (const Area& area : process.areas) *process.mm.add_vmas() = area.entry;
    RETURN_IF_ERROR(PutOne(sink, ImageName("ids", pid), "ids", process.ids));
    RETURN_IF_ERROR(PutOne(sink, ImageName("mm", pid), "mm", process.mm));
    RETURN_IF_ERROR(PutOne(sink, ImageName("fs", pid), "fs", process.fs));
  }
  return sink.Put(ImageName("pstree"), tree.bytes());
}

Status KillAll(FrozenTree& tree) {
  RETURN_IF_ERROR(SignalAll(tree, SIGKILL));
  const auto deadline = steady_clock::now() + kDeathTimeout;
  for (auto process = tree.processes().rbegin(); process != tree.processes().rend(); ++process) {
    // The first thread is reported last.
    for (auto thread = process->threads.rbegin(); thread != process->threads.rend(); ++thread) {
      RETURN_IF_ERROR(WaitForDeath(thread->tracee, deadline));
    }
  }
  return tree.Thaw();
}

Status StopAll(FrozenTree& tree) {
  RETURN_IF_ERROR(SignalAll(tree, SIGSTOP));
  return tree.Thaw();
}

}  // namespace stasis::engine
