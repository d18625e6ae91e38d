#include "engine/tasks/dump_beside.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "engine/tasks/dump_outside.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/settings.h"

namespace stasis::engine {

BesideLook::BesideLook(const FrozenTree& tree, const NamespaceDumper& namespaces, OfProcess areas,
                       KernelTasks* kernel)
    : namespaces_(namespaces), areas_of_(std::move(areas)) {
  std::size_t threads = 0;
  for (const FrozenProcess& process : tree.processes()) threads += process.threads.size();
  threads_.reserve(threads);
  for (const FrozenProcess& process : tree.processes()) {
    if (process.zombie) continue;
    processes_.push_back({.process = &process});
    for (const FrozenThread& thread : process.threads) threads_.push_back({&process, &thread});
  }
  other_threads_ = std::async(std::launch::async, [this, kernel]() -> Status {
    if (kernel != nullptr) LookIntoKernel(*kernel);
    const Status processes = LookAtProcesses();
    other_processes_.set_value(processes);
    return processes.ok() ? LookAtThreads() : processes;
  });
}

BesideLook::~BesideLook() {
  // An early return: what is not begun is not wanted.
  next_process_ = processes_.size();
  next_thread_ = threads_.size();
  if (other_threads_.valid()) other_threads_.wait();
}

Status BesideLook::LookAt(SeenProcess& seen) const {
  RETURN_IF_ERROR(ReadFilesOfProc(*seen.process, seen.core, seen.mm));
  ASSIGN_OR_RETURN(seen.areas, areas_of_(*seen.process));
  return OkStatus();
}

// Of processes with many threads. What cannot be read is asked for as it is without it.
void BesideLook::LookIntoKernel(KernelTasks& kernel) {
  for (auto seen = threads_.begin(); seen != threads_.end();) {
    const FrozenProcess& process = *seen->process;
    const auto end = seen + static_cast<std::ptrdiff_t>(process.threads.size());
    if (process.threads.size() >= KernelTasks::kWorthIt) {
      const auto known = kernel.ThreadsOf(process.proc.get());
      if (known.ok()) KeepKernelTasks(std::span(seen, end), *known);
    }
    seen = end;
  }
}

// Of one process, its leader first.
void BesideLook::KeepKernelTasks(std::span<SeenThread> threads,
                                 const std::map<pid_t, KernelTask>& known) {
  for (SeenThread& seen : threads) {
    const auto found = known.find(seen.thread->tid());
    if (found == known.end()) continue;
    const KernelTask& task = found->second;
    seen.in_kernel = task;
    const auto& leader = threads.front().in_kernel;
    seen.is_as_leader = &seen != &threads.front() && leader && task.files == leader->files &&
                        task.directories == leader->directories &&
                        task.namespaces == leader->namespaces && task.cgroups == leader->cgroups;
  }
}

Status BesideLook::LookAt(SeenThread& seen) const {
  if (!seen.is_as_leader) {
    RETURN_IF_ERROR(CheckShares(*seen.process, *seen.thread));
    RETURN_IF_ERROR(namespaces_.CheckSame(*seen.process, *seen.thread));
    ASSIGN_OR_RETURN(seen.cgroups, seen.thread->files.Read(TaskFiles::kCgroup));
  }
  RETURN_IF_ERROR(ReadByCalls(*seen.thread, seen.settings));
  return ReadSettings(*seen.thread, seen.settings);
}

Status BesideLook::LookAtProcesses() {
  for (std::size_t i = next_process_++; i < processes_.size(); i = next_process_++) {
    RETURN_IF_ERROR(Annotate(LookAt(processes_[i]), Name(*processes_[i].process)));
  }
  return OkStatus();
}

Status BesideLook::LookAtThreads() {
  constexpr std::size_t kPiece = 8;
  while (true) {
    const std::size_t begin = next_thread_.fetch_add(kPiece);
    if (begin >= threads_.size()) return OkStatus();
    const std::size_t end = std::min(begin + kPiece, threads_.size());
    for (std::size_t i = begin; i < end; ++i) {
      SeenThread& seen = threads_[i];
      RETURN_IF_ERROR(Annotate(LookAt(seen), Name(*seen.process) + ": " + Name(*seen.thread)));
    }
  }
}

Status BesideLook::TakeProcesses(std::vector<DumpedProcess>& processes) {
  const Status ours = LookAtProcesses();
  RETURN_IF_ERROR(other_processes_.get_future().get());
  RETURN_IF_ERROR(ours);
  auto seen = processes_.begin();
  auto seen_thread = threads_.begin();
  for (DumpedProcess& process : processes) {
    if (process.zombie) continue;
    process.threads.front().core.mutable_tc()->MergeFrom(seen->core);
    process.mm.MergeFrom(seen->mm);
    process.areas = std::move(seen->areas);
    ++seen;
    for (DumpedThread& thread : process.threads) thread.in_kernel = (seen_thread++)->in_kernel;
  }
  return OkStatus();
}

Status BesideLook::TakeThreads(std::vector<DumpedProcess>& processes, CgroupDumper& cgroups) {
  const Status ours = LookAtThreads();
  RETURN_IF_ERROR(other_threads_.get());
  RETURN_IF_ERROR(ours);
  auto seen = threads_.begin();
  for (DumpedProcess& process : processes) {
    if (process.zombie) continue;
    const std::string& of_leader = seen->cgroups;
    for (DumpedThread& thread : process.threads) {
      thread.core.mutable_thread_core()->MergeFrom(seen->settings);
      const std::string& of_thread = seen->is_as_leader ? of_leader : seen->cgroups;
      RETURN_IF_ERROR(cgroups.Add(seen->thread->tid(), of_thread));
      ++seen;
    }
  }
  threads_ = {};  // memory is read next, which needs room
  return OkStatus();
}

}  // namespace stasis::engine
