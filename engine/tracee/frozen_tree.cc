// Source  ptrace(2), proc_pid_task_children(5); tested on 6.18
// Rule    PTRACE_SEIZE and PTRACE_INTERRUPT send no signal. All threads are interrupted before the first
//         is waited for, so that the tree stops in the time of its slowest thread.
// Rule    Until a thread is seen to stand still it may clone and fork: we list again until a pass over
//         the whole tree finds nothing new.
// Rule    The parent of a vfork(2) sleeps uninterruptibly until its child executes a program or exits: it
//         cannot stop, and when its child is stopped it never will. Then the others are let go until it
//         stands, and frozen again.
// Rule    Our stop ends some calls with EINTR (signal(7)), like SIGSTOP, though no program expects a
//         checkpoint: those without a time limit are issued again, in the live thread as in its image.
// Rule    A thread that is not in a stop cannot be detached (ESRCH): it stays seized, with its interrupt
//         pending, until it stops or its tracer's thread ends (exit_ptrace() in kernel/ptrace.c).
#include "engine/tracee/frozen_tree.h"

#include <fcntl.h>

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "engine/base/in_halves.h"
#include "engine/base/io.h"
#include "engine/tracee/freezer.h"
#include "engine/tracee/task_folder.h"

namespace stasis::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kAttempts = 5;

// A thread and its process while the tree is read.
struct Stopped {
  FrozenProcess& process;
  FrozenThread& thread;
};

Status ReadStatus(Stopped& stopped) {
  const pid_t tid = stopped.thread.tracee.tid();
  if (tid == stopped.process.pid) {
    stopped.thread.status = stopped.process.status;  // one and the same
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string text, stopped.thread.files.Read(TaskFiles::kStatus));
  ASSIGN_OR_RETURN(stopped.thread.status, ParseTaskStatus(text));
  return OkStatus();
}

// Makes what our stop ended a call that is to be issued again, and says how long the thread slept in it.
Status KeepWait(Stopped& stopped, const WaitsBeforeFreeze& before, EarlierStops* earlier) {
  FrozenThread& thread = stopped.thread;
  const pid_t tid = thread.tid();
  Result<arch::GeneralRegisters>& registers = thread.registers;
  if (!registers.ok()) return OkStatus();  // 32-bit code, which ReadOutside refuses by name
  auto call = arch::CallAt(*registers);
  if (!call) return OkStatus();
  if (thread.stop_signal == 0 && EndedByStop(*call)) {
    // A signal with a handler that is pending, or comes before the thread runs, still makes it EINTR.
    call->result = arch::kRestartUnlessHandled;
  } else if (call->result == arch::kRestartBlock) {
    const auto wait = before.Find(tid, *call, thread.status.voluntary_switches);
    if (!wait) return OkStatus();
    thread.slept = wait->slept;
    if (thread.slept && earlier != nullptr) {
      thread.slept = earlier->Slept(tid, wait->call, wait->restarted,
                                    thread.status.voluntary_switches, *thread.slept);
    }
    // The kernel looks at the result alone; we want to know what restart_syscall(2) goes on with.
    call->number = wait->call.number;
  } else {
    return OkStatus();
  }
  arch::SetCall(*call, *registers);
  return arch::WriteGeneral(tid, *registers);
}

// Its memory and descriptors are shown by no file of /proc of the whole process any more.
Status LeaderHasEnded(const FrozenProcess& process) {
  return Unimplemented("pid " + std::to_string(process.ns_pid) + " (" + process.status.name +
                       "): its first thread has ended (pthread_exit) while others run, which "
                       "cannot be checkpointed");
}

}  // namespace

// The tree shortly before it is frozen: what of it is there then is found faster.
struct FrozenTree::Before {
  Shape shape;
  std::map<pid_t, std::vector<pid_t>> tids;  // of each process
  std::map<pid_t, TaskFiles> files;          // of each thread
  WaitsBeforeFreeze waits;

  static Before Look(pid_t root) {
    Before before = {.shape = {{root, 0}}, .tids = {}, .files = {}, .waits = {}};
    std::vector<std::pair<pid_t, pid_t>> threads;
    for (std::size_t i = 0; i < before.shape.size(); ++i) {
      const pid_t pid = before.shape[i].first;
      std::vector<pid_t>& tids = before.tids[pid];
      tids = ThreadsOf(pid);
      std::erase_if(tids, [pid](pid_t tid) { return tid != pid && IsKernelWorker(pid, tid); });
      for (const pid_t tid : tids) {
        threads.emplace_back(pid, tid);
        TaskFiles& files = before.files[tid] = TaskFiles(pid, tid);
        files.Open();
        for (const pid_t child : files.Children()) before.shape.emplace_back(child, pid);
      }
    }
    before.waits = WaitsBeforeFreeze::Look(threads);
    return before;
  }

  // What a dump keeps of each, roughly.
  std::size_t HeapBytes() const {
    constexpr std::size_t kOfProcess = 16 << 10, kOfThread = 6 << 10, kMost = 24 << 20;
    return std::min(tids.size() * kOfProcess + files.size() * kOfThread, kMost);
  }
};

namespace {

// Stops all threads under `root`: those that were there before first, then what is listed while they stand.
// DeadlineExceeded: a thread does not stop.
Result<FrozenTree::Shape> FreezeOnce(pid_t root, const FrozenTree::Before& before,
                                     Freezer& freezer) {
  FrozenTree::Shape tree = before.shape;
  // To be seized takes a thread a third of the time that it takes to stop, in which it runs.
  Status seized;
  for (const auto& [pid, tids] : before.tids) {
    seized = freezer.Seize(pid, tids).status();
    if (!seized.ok()) break;
  }
  // Also of a tree that cannot be frozen: what runs cannot be detached from.
  RETURN_IF_ERROR(freezer.InterruptAll());
  RETURN_IF_ERROR(freezer.WaitAll());
  RETURN_IF_ERROR(seized);
  bool changed = true;
  while (changed) {
    changed = false;
    std::vector<std::pair<pid_t, pid_t>> now = {{root, 0}};
    std::set<pid_t> seen = {root};
    for (std::size_t i = 0; i < now.size(); ++i) {
      const pid_t pid = now[i].first;
      const std::vector<pid_t> tids = ThreadsOf(pid);
      ASSIGN_OR_RETURN(const bool found, freezer.Visit(pid, tids));
      changed = changed || found;
      for (const pid_t child : freezer.ChildrenOf(tids)) {
        if (seen.insert(child).second) now.emplace_back(child, pid);
      }
    }
    RETURN_IF_ERROR(freezer.WaitAll());
    changed = changed || now != tree;
    tree = std::move(now);
  }
  return tree;
}

}  // namespace

FrozenTree::~FrozenTree() { (void)Thaw(); }

Result<FrozenTree> FrozenTree::Freeze(pid_t root, steady_clock::time_point deadline,
                                      const std::stop_token& stop, EarlierStops* earlier) {
  Before before = Before::Look(root);
  WarmHeap heap(before.HeapBytes());
  Freezer freezer(before.files, deadline, stop);
  for (int attempt = 1;; ++attempt) {
    const Result<Shape> shape = FreezeOnce(root, before, freezer);
    const Status& status = shape.status();
    if (status.ok()) return FrozenTree::Of(*shape, freezer, before, std::move(heap), earlier);
    if (status.code() != StatusCode::kDeadlineExceeded) return status;
    if (steady_clock::now() >= deadline) return status;
    if (attempt == kAttempts) {
      return Unavailable(
          "the tree of pid " + std::to_string(root) + " cannot be frozen: " + Message(status) +
          " (uninterruptible sleep; try again when the device or file system answers)");
    }
    RETURN_IF_ERROR(freezer.AwaitSleepers());
  }
}

Result<FrozenTree> FrozenTree::Of(const Shape& shape, Freezer& freezer, const Before& before,
                                  WarmHeap heap, EarlierStops* earlier) {
  FrozenTree tree;
  tree.heap_ = std::move(heap);
  tree.first_stop_ = freezer.first_stop();
  std::map<pid_t, std::vector<pid_t>> tids;
  for (const auto& [tid, thread] : freezer.threads()) tids[thread.pid].push_back(tid);
  for (const auto& [pid, parent] : shape) {
    FrozenProcess process;
    process.pid = pid;
    process.parent = parent;
    process.threads.reserve(tids[pid].size());
    for (const pid_t tid : tids[pid]) {
      Freezer::Thread& thread = freezer.threads().at(tid);
      process.threads.push_back({.tracee = std::move(thread.tracee),
                                 .files = std::move(thread.files),
                                 .stop_signal = thread.stop_signal});
      // The map is in the order of thread ids, which have nothing to do with who is the leader.
      if (tid == pid) std::swap(process.threads.front(), process.threads.back());
    }
    tree.processes_.push_back(std::move(process));
  }
  RETURN_IF_ERROR(tree.ReadTasks(before, earlier));
  return tree;
}

Result<FrozenTree> FrozenTree::Look(pid_t root) {
  FrozenTree tree;
  std::vector<std::pair<pid_t, pid_t>> shape = {{root, 0}};
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const pid_t pid = shape[i].first;
    FrozenProcess process;
    process.pid = pid;
    process.parent = shape[i].second;
    const Status status = ReadProcess(process);
    if (status.code() == StatusCode::kNotFound && pid != root) continue;
    RETURN_IF_ERROR(status);
    const std::vector<pid_t> tids = ThreadsOf(pid);
    if (process.zombie && tids.size() > 1) return LeaderHasEnded(process);
    for (const pid_t tid : tids) {
      TaskFiles files(pid, tid);
      for (const pid_t child : files.Children()) shape.emplace_back(child, pid);
      const auto text = files.Read(TaskFiles::kStatus);
      if (!text.ok() || process.zombie || (tid != pid && IsKernelWorker(pid, tid))) continue;
      FrozenThread& thread = process.threads.emplace_back();
      thread.files = std::move(files);
      ASSIGN_OR_RETURN(thread.status, ParseTaskStatus(*text));
    }
    tree.processes_.push_back(std::move(process));
  }
  return tree;
}

Status FrozenTree::ReadProcess(FrozenProcess& process) {
  const std::string folder = "/proc/" + std::to_string(process.pid);
  Result<UniqueFd> proc = OpenAt(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY);
  if (!proc.ok()) return NotFound("no process with pid " + std::to_string(process.pid));
  process.proc = *std::move(proc);
  const TaskFiles unopened(process.pid, process.pid);
  // The first of its threads here is another where its own first one has ended.
  const bool has_leader =
      !process.threads.empty() && process.threads.front().tracee.tid() == process.pid;
  const TaskFiles& files = has_leader ? process.threads.front().files : unopened;
  ASSIGN_OR_RETURN(const std::string stat, files.Read(TaskFiles::kStat));
  ASSIGN_OR_RETURN(process.stat, ParseTaskStat(stat));
  ASSIGN_OR_RETURN(const std::string status, files.Read(TaskFiles::kStatus));
  ASSIGN_OR_RETURN(process.status, ParseTaskStatus(status));
  if (process.status.ns_pid.empty()) return Unimplemented("/proc/PID/status has no NSpid");
  process.ns_pid = process.status.ns_pid.back();
  process.zombie = process.status.state == 'Z';
  return OkStatus();
}

Status FrozenTree::ReadTasks(const Before& before, EarlierStops* earlier) {
  std::vector<Stopped> all;
  for (FrozenProcess& process : processes_) {
    for (FrozenThread& thread : process.threads) {
      // Read first: only when this is answered has the thread left its processor, and is the switch counted.
      thread.registers = arch::ReadGeneral(thread.tracee.tid());
      all.push_back({process, thread});
    }
  }
  RETURN_IF_ERROR(InHalves(std::span(processes_), ReadProcess));
  for (const FrozenProcess& process : processes_) {
    if (process.zombie && !process.threads.empty()) return LeaderHasEnded(process);
    if (!process.zombie && process.threads.empty()) {
      return NotFound("pid " + std::to_string(process.pid) + " has ended");
    }
  }
  if (processes_.front().zombie) {
    return FailedPrecondition("pid " + std::to_string(root().pid) + " has ended (it is a zombie)");
  }
  RETURN_IF_ERROR(InHalves(std::span(all), ReadStatus));
  for (Stopped& stopped : all) RETURN_IF_ERROR(KeepWait(stopped, before.waits, earlier));
  return OkStatus();
}

Status FrozenTree::Thaw() {
  Status worst;
  for (FrozenProcess& process : processes_) {
    for (FrozenThread& thread : process.threads) {
      if (thread.tracee.tid() == 0) continue;
      const Status status = thread.tracee.Detach();
      // One that was killed meanwhile needs no thawing.
      if (!status.ok() && status.code() != StatusCode::kNotFound) worst = status;
    }
  }
  return worst;
}

}  // namespace stasis::engine
