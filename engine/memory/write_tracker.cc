// Source  userfaultfd(2), mm/userfaultfd.c; tested on 6.18
// Rule    mremap(2) and fork(2) do not take the watch with them (no UFFD_FEATURE_EVENT_*); execve(2) leaves it
//         with the old memory.
// Rule    What must not be saved (MAP_DROPPABLE) cannot be watched: EINVAL (vma_can_userfault() in
//         include/linux/userfaultfd_k.h).
// Rule    What O_DIRECT, vmsplice(2) and the like have pinned is written without a fault: see pre_copy.cc.
#include "engine/memory/write_tracker.h"

#include <algorithm>

#include "engine/memory/dump_areas.h"
#include "engine/memory/userfault.h"

namespace stasis::engine {

Result<WriteTracker> WriteTracker::Begin(UniqueFd userfaultfd) {
  RETURN_IF_ERROR(StartUserfault(userfaultfd.get()));
  return WriteTracker(std::move(userfaultfd));
}

void WriteTracker::Watch(const Vma& vma) {
  if (!IsAnonymous(vma)) return;
  // EBUSY: the program's own userfaultfd; EINVAL: what cannot be watched, or has gone.
  if (!WatchRange(fd_.get(), {vma.start, vma.end})) return;
  Append(watched_, {vma.start, vma.end});
  areas_.push_back({vma.start, vma.end});
}

void WriteTracker::HideFrom(Vma& vma) const {
  const auto overlaps = [&](const PageRange& range) {
    return range.start < vma.end && vma.start < range.end;
  };
  if (IsAnonymous(vma) && std::ranges::any_of(watched_, overlaps)) vma.flags.Erase("uw");
}

void WriteTracker::End(const std::vector<Vma>& now) {
  UnwatchAreas(fd_.get(), areas_, now);
  watched_.clear();
  fd_.Reset();
}

}  // namespace stasis::engine
