#include "engine/tasks/dump_beside.h"

#include <algorithm>
#include <utility>

#include "engine/tasks/dump_tree.h"
#include "engine/tasks/settings.h"

namespace stasis::engine {

BesideLook::BesideLook(const FrozenTree& tree, const NamespaceDumper& namespaces)
    : namespaces_(namespaces) {
  for (const FrozenProcess& process : tree.processes()) {
    for (const FrozenThread& thread : process.threads) threads_.push_back({&process, &thread});
  }
  other_ = std::async(std::launch::async, [this] { return LookAtTheRest(); });
}

BesideLook::~BesideLook() {
  next_ = threads_.size();  // an early return: what is not begun is not wanted
  if (other_.valid()) other_.wait();
}

Status BesideLook::LookAt(Seen& seen) const {
  RETURN_IF_ERROR(namespaces_.CheckSame(*seen.process, *seen.thread));
  ASSIGN_OR_RETURN(seen.cgroups, seen.thread->files.Read(TaskFiles::kCgroup));
  return ReadSettings(*seen.thread, seen.settings);
}

Status BesideLook::LookAtTheRest() {
  constexpr std::size_t kPiece = 8;
  while (true) {
    const std::size_t begin = next_.fetch_add(kPiece);
    if (begin >= threads_.size()) return OkStatus();
    const std::size_t end = std::min(begin + kPiece, threads_.size());
    for (std::size_t i = begin; i < end; ++i) {
      Seen& seen = threads_[i];
      RETURN_IF_ERROR(Annotate(
          LookAt(seen), Name(*seen.process) + ": tid " + std::to_string(seen.thread->ns_tid())));
    }
  }
}

Status BesideLook::Take(std::vector<DumpedProcess>& processes, CgroupDumper& cgroups) {
  const Status ours = LookAtTheRest();
  RETURN_IF_ERROR(other_.get());
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
