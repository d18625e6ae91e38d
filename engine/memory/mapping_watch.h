// What one process does to shared memory that it maps: which pages it writes there, and whether it could have
// written them elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/page_map.h"
#include "engine/memory/page_ranges.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

/// Belongs to one address space, as a WriteTracker does. A process that forks, or moves or gives back what is
/// watched, waits until ReadEvents has been called: some thread does so whenever a descriptor is readable.
class MappingWatch {
 public:
  /// What the process did since it is watched.
  struct Seen {
    bool forked = false;  ///< A child had the same mappings, and nobody knows what it wrote.
    bool moved = false;   ///< mremap(2): a mapping was elsewhere, or twice.
    bool lost = false;    ///< Nobody knows.
    PageRanges removed;   ///< Addresses of madvise(2) MADV_REMOVE or MADV_DONTNEED.
  };

  /// By two userfaultfds of a process (MakeUserfaultfds) that stands still and has `vmas`. Its forks are seen
  /// from here on. Unimplemented: this kernel, or this process, cannot.
  static Result<std::unique_ptr<MappingWatch>> Begin(UniqueFd writes, UniqueFd forks,
                                                     const std::vector<Vma>& vmas);

  /// Watches all of `vma` of the process, which stands still.
  void Watch(const Vma& vma);
  /// Whether all of `vma` is watched since it was the area that it is.
  bool Watches(const Vma& vma) const;

  /// True when the flags of smaps say that a fork would not be seen.
  bool MissesForks(const std::vector<Vma>& smaps) const;
  /// Of a process that stands still: as MissesForks, by its page tables.
  bool StillSeesForks(const PageMap& map) const;

  /// As WriteTracker::HideFrom.
  void HideFrom(Vma& vma);

  /// By any thread.
  void ReadEvents();
  Seen seen();

  /// Become readable when there are events.
  std::vector<int> descriptors() const { return {writes_.get(), forks_.get()}; }

  /// Ends the watch. The process, which may run, has `now`.
  void End(const std::vector<Vma>& now);

 private:
  MappingWatch(UniqueFd writes, UniqueFd forks, PageRange stack)
      : writes_(std::move(writes)), forks_(std::move(forks)), stack_(stack) {}
  bool ReadAll(const UniqueFd& fd);

  std::mutex mutex_;  // over forks_ and seen_
  const UniqueFd writes_;
  UniqueFd forks_;  // closed when nobody reads it any more
  const PageRange stack_;
  PageRanges areas_;  // each as it was watched
  Seen seen_;
};

}  // namespace stasis::engine
