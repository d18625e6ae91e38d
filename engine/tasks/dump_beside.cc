#include "engine/tasks/dump_beside.h"

#include <algorithm>
#include <utility>

#include "engine/tasks/dump_outside.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/settings.h"

namespace stasis::engine {

BesideLook::BesideLook(const FrozenTree& tree, const NamespaceDumper& namespaces, OfProcess areas)
    : namespaces_(namespaces), areas_of_(std::move(areas)) {
  for (const FrozenProcess& process : tree.processes()) {
    if (process.zombie) continue;
    processes_.push_back({.process = &process});
    for (const FrozenThread& thread : process.threads) threads_.push_back({&process, &thread});
  }
  other_threads_ = std::async(std::launch::async, [this]() -> Status {
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

Status BesideLook::LookAt(SeenThread& seen) const {
  RETURN_IF_ERROR(CheckShares(*seen.process, *seen.thread));
  RETURN_IF_ERROR(namespaces_.CheckSame(*seen.process, *seen.thread));
  RETURN_IF_ERROR(ReadByCalls(*seen.thread, seen.settings));
  ASSIGN_OR_RETURN(seen.cgroups, seen.thread->files.Read(TaskFiles::kCgroup));
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
  for (DumpedProcess& process : processes) {
    if (process.zombie) continue;
    process.threads.front().core.mutable_tc()->MergeFrom(seen->core);
    process.mm.MergeFrom(seen->mm);
    process.areas = std::move(seen->areas);
    ++seen;
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
    for (DumpedThread& thread : process.threads) {
      thread.core.mutable_thread_core()->MergeFrom(seen->settings);
      RETURN_IF_ERROR(cgroups.Add(seen->thread->tid(), seen->cgroups));
      ++seen;
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
