// Source  userfaultfd(2), ioctl_userfaultfd(2), mm/userfaultfd.c, mm/madvise.c, kernel/fork.c; tested on 6.18
// Rule    A child does not inherit the watch of its parent's areas (dup_userfaultfd() in fs/userfaultfd.c), so
//         what it writes to shared memory is not seen. With UFFD_FEATURE_EVENT_FORK it does, and the fork waits
//         until the event is read and copies the page tables of what is watched. So that is asked for the
//         stack alone, by a userfaultfd of its own: every fork(2) copies the stack, none can be missed, and it
//         takes no longer.
// Rule    mremap(2) of shared memory with an old size of 0 maps it a second time. What is moved or doubled is
//         not watched any more, unless by UFFD_FEATURE_EVENT_REMAP.
// Rule    MADV_REMOVE takes pages from the object and leaves their protection in the page tables: zeros that a
//         read brings back would look as if nobody had written them. UFFD_FEATURE_EVENT_REMOVE tells of it
//         before it happens.
// Rule    An event of a fork makes a descriptor in who reads it. Where there is no room for one the event stays,
//         and the fork waits, until the userfaultfd is closed.
// Rule    Whoever caused an event runs on when it is read, perhaps before the reader does: both are in one
//         critical section with who asks.
#include "engine/memory/mapping_watch.h"

#include <linux/userfaultfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/memory/userfault.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kMostRemoved = 4096;  // pieces; what has more is not worth to be watched

bool Overlaps(const PageRange& range, const Vma& vma) {
  return range.start < vma.end && vma.start < range.end;
}

void Note(const uffd_msg& message, MappingWatch::Seen& seen) {
  switch (message.event) {
    case UFFD_EVENT_FORK:
      UniqueFd(static_cast<int>(message.arg.fork.ufd));  // the child's, which is not watched
      seen.forked = true;
      return;
    case UFFD_EVENT_REMAP:
      seen.moved = true;
      return;
    case UFFD_EVENT_REMOVE:
      seen.removed = Unite(seen.removed, {{message.arg.remove.start, message.arg.remove.end}});
      return;
    default:
      seen.lost = true;
  }
}

}  // namespace

Result<std::unique_ptr<MappingWatch>> MappingWatch::Begin(UniqueFd writes, UniqueFd forks,
                                                          const std::vector<Vma>& vmas) {
  RETURN_IF_ERROR(
      StartUserfault(writes.get(), UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE));
  RETURN_IF_ERROR(StartUserfault(forks.get(), UFFD_FEATURE_EVENT_FORK));
  const auto stack = std::ranges::find(vmas, "[stack]", &Vma::path);
  if (stack == vmas.end() || !WatchRange(forks.get(), {stack->start, stack->end})) {
    return Unimplemented("its forks cannot be seen, for its stack cannot be watched");
  }
  return std::unique_ptr<MappingWatch>(
      new MappingWatch(std::move(writes), std::move(forks), PageRange{stack->start, stack->end}));
}

void MappingWatch::Watch(const Vma& vma) {
  if (WatchRange(writes_.get(), {vma.start, vma.end})) areas_.push_back({vma.start, vma.end});
}

bool MappingWatch::Watches(const Vma& vma) const {
  return std::ranges::any_of(areas_, [&](const PageRange& area) {
    return area.start == vma.start && area.end == vma.end;
  });
}

bool MappingWatch::MissesForks(const std::vector<Vma>& smaps) const {
  const auto stack =
      std::ranges::find_if(smaps, [&](const Vma& vma) { return Overlaps(stack_, vma); });
  return stack == smaps.end() || stack->Has("dc") || !stack->Has("uw");
}

bool MappingWatch::StillSeesForks(const PageMap& map) const {
  return map.IsWatched(stack_.start, stack_.end);
}

void MappingWatch::HideFrom(Vma& vma) {
  const auto overlaps = [&](const PageRange& range) { return Overlaps(range, vma); };
  const bool ours =
      vma.shared ? std::ranges::any_of(areas_, overlaps) || seen().moved : Overlaps(stack_, vma);
  if (ours) vma.flags.Erase("uw");
}

// A program may never let it end: who wants to see what there is, is let in between.
bool MappingWatch::ReadAll(const UniqueFd& fd) {
  uffd_msg message = {};
  while (true) {
    const std::lock_guard lock(mutex_);
    if (!fd) return false;
    const ssize_t got = ::read(fd.get(), &message, sizeof(message));
    if (got != sizeof(message)) return got < 0 && errno == EAGAIN;
    if (!seen_.lost) Note(message, seen_);
    if (seen_.removed.size() < kMostRemoved) continue;
    seen_.lost = true;
    seen_.removed.clear();
  }
}

void MappingWatch::ReadEvents() {
  if (ReadAll(writes_) && ReadAll(forks_)) return;
  const std::lock_guard lock(mutex_);
  seen_.lost = true;
  forks_.Reset();
}

MappingWatch::Seen MappingWatch::seen() {
  const std::lock_guard lock(mutex_);
  return seen_;
}

void MappingWatch::End(const std::vector<Vma>& now) {
  std::vector<PageRange> others;
  for (const PageRange& area : areas_) {
    const auto vma = std::ranges::find(now, area.start, &Vma::start);
    // Their areas would stay in pieces.
    const bool stays = vma != now.end() &&
                       (vma->path.starts_with("/anon_hugepage") || vma->path.starts_with("/SYSV"));
    if (!stays) others.push_back(area);
    if (stays && vma->end == area.end) UnwatchWhole(writes_.get(), area);
  }
  UnwatchAreas(writes_.get(), others, now);
  const std::lock_guard lock(mutex_);
  UnwatchWhole(forks_.get(), stack_);
  forks_.Reset();
}

}  // namespace stasis::engine
