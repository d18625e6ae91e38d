// A tree of processes that stands still.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/base/warm_heap.h"
#include "engine/proc/task.h"
#include "engine/tracee/task_files.h"
#include "engine/tracee/tracee.h"
#include "engine/tracee/waits.h"

namespace stasis::engine {

class Freezer;

struct FrozenThread {
  Tracee tracee;
  TaskFiles files = {};
  TaskStatus status = {};  ///< /proc/TID/status, read while it stood still.
  /// As it stopped, with a call that the stop ended made one to be issued again; an error for 32-bit code.
  Result<arch::GeneralRegisters> registers = NotFound("it was not stopped");
  int stop_signal = 0;  ///< Not 0: it was in group-stop by this signal already.
  /// How long, at least, it had slept in a wait that its stop interrupted; unset where nobody knows.
  std::optional<std::chrono::nanoseconds> slept = {};

  pid_t tid() const { return status.pid; }
  pid_t ns_tid() const { return status.ns_pid.back(); }
};

struct FrozenProcess {
  pid_t pid = 0;     ///< As we see it.
  pid_t ns_pid = 0;  ///< As its own pid namespace does.
  pid_t parent = 0;  ///< `pid` of its parent in the tree; 0 for the root.
  bool zombie = false;
  UniqueFd proc;  ///< Directory /proc/PID, so that a reused pid cannot be read by mistake.
  TaskStat stat;
  TaskStatus status;
  std::vector<FrozenThread> threads;  ///< Leader first; none for a zombie.
};

/// Freezes by ptrace alone, so that the kernel lets the tree run again when we die (a freezer cgroup
/// would stay frozen). Thaws in its destructor.
class FrozenTree {
 public:
  /// The tree under `root`, all threads stopped. NotFound: no such process. Unavailable: a task does not
  /// stop (uninterruptible sleep). Unimplemented: a tree that cannot be frozen as a whole. On failure
  /// everything runs on, a task in uninterruptible sleep once the calling thread has ended. `earlier`: stops of
  /// the same tree shortly before, to which this one is added; may be null.
  static Result<FrozenTree> Freeze(pid_t root, std::chrono::steady_clock::time_point deadline,
                                   const std::stop_token& stop, EarlierStops* earlier = nullptr);

  /// The tree under `root` as it runs, without a tracee anywhere. What ends meanwhile is not in it.
  static Result<FrozenTree> Look(pid_t root);

  FrozenTree(FrozenTree&&) = default;
  FrozenTree& operator=(FrozenTree&&) = delete;
  ~FrozenTree();

  /// Parents before their children; the root is the first.
  std::vector<FrozenProcess>& processes() { return processes_; }
  const std::vector<FrozenProcess>& processes() const { return processes_; }
  const FrozenProcess& root() const { return processes_.front(); }
  std::chrono::steady_clock::time_point first_stop() const { return first_stop_; }

  /// Lets all tasks run. Called once; the destructor covers early returns.
  Status Thaw();

  // For the implementation alone.
  struct Before;
  using Shape = std::vector<std::pair<pid_t, pid_t>>;  ///< Process, its parent; parents first.

 private:
  FrozenTree() = default;
  static Result<FrozenTree> Of(const Shape& shape, Freezer& freezer, const Before& before,
                               WarmHeap heap, EarlierStops* earlier);
  Status ReadTasks(const Before& before, EarlierStops* earlier);
  static Status ReadProcess(FrozenProcess& process);

  WarmHeap heap_;  // for what is read of the tree while it stands still
  std::vector<FrozenProcess> processes_;
  std::chrono::steady_clock::time_point first_stop_;
};

}  // namespace stasis::engine
