// What /proc tells anybody of a frozen tree: looked at by a thread of ours, beside the one that traces and asks
// by ptrace(2).
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <future>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/image/schema/memory.pb.h"
#include "engine/image/schema/tasks.pb.h"
#include "engine/memory/dump_areas.h"
#include "engine/tasks/cgroups.h"
#include "engine/tasks/dump_namespaces.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/kernel_tasks.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

class BesideLook {
 public:
  /// What else is to be read of a process that is no zombie; by any thread of ours.
  using OfProcess = std::function<Result<std::vector<Area>>(const FrozenProcess& process)>;

  /// Begins to look. The first two must stay as they are, and where they are. `kernel`: may be null.
  BesideLook(const FrozenTree& tree, const NamespaceDumper& namespaces, OfProcess areas,
             KernelTasks* kernel);
  BesideLook(const BesideLook&) = delete;
  BesideLook& operator=(const BesideLook&) = delete;
  ~BesideLook();

  /// Helps to look at the processes that are left, and adds what was seen to `processes`, those of the tree in
  /// its order. Unimplemented: what `areas` refuses.
  Status TakeProcesses(std::vector<DumpedProcess>& processes);
  /// The same for threads, afterwards. Unimplemented: one that is not in the tree's namespaces, or has left what
  /// it shared with its process.
  Status TakeThreads(std::vector<DumpedProcess>& processes, CgroupDumper& cgroups);

 private:
  struct SeenThread {
    const FrozenProcess* process;
    const FrozenThread* thread;
    std::optional<KernelTask> in_kernel = {};
    bool is_as_leader = false;  // in namespaces, cgroups and what threads share
    image::ThreadCoreEntry settings = {};
    std::string cgroups = {};  // of one that is not as its leader
  };
  struct SeenProcess {
    const FrozenProcess* process;
    image::TaskCoreEntry core = {};
    image::MmEntry mm = {};
    std::vector<Area> areas = {};
  };
  void LookIntoKernel(KernelTasks& kernel);
  static void KeepKernelTasks(std::span<SeenThread> threads,
                              const std::map<pid_t, KernelTask>& known);
  Status LookAt(SeenThread& seen) const;
  Status LookAt(SeenProcess& seen) const;
  Status LookAtProcesses();
  Status LookAtThreads();

  const NamespaceDumper& namespaces_;
  const OfProcess areas_of_;
  std::vector<SeenProcess> processes_;  // of the tree, in its order, without zombies
  std::vector<SeenThread> threads_;     // of those
  std::atomic<std::size_t> next_process_ = 0, next_thread_ = 0;
  std::promise<Status> other_processes_;
  std::future<Status> other_threads_;
};

}  // namespace stasis::engine
