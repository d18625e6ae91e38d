// Which pages of a running process are written to: an asynchronous userfaultfd, which costs the process a
// fault of about a microsecond at the first write to a page, and never makes it wait for us.
#pragma once

#include <cstdint>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/page_ranges.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

/// Belongs to one address space: after an execve(2), and in children, nothing is watched, and PageMap says
/// so. Destroyed, or when we die, the process is as before; End() does that in steps that nobody feels.
class WriteTracker {
 public:
  /// By a userfaultfd of the process (MakeUserfaultfds). Unimplemented: this kernel cannot (Linux 6.7).
  static Result<WriteTracker> Begin(UniqueFd userfaultfd);

  /// Watches `vma` of the process, which stands still, if it is private anonymous memory of small pages and not watched
  /// by somebody else.
  void Watch(const Vma& vma);

  /// What is watched; areas may have gone since, and the heap and stacks may have grown.
  const PageRanges& watched() const { return watched_; }

  /// Takes from the flags of `vma` what they have by this watch ("uw"), and would be refused as the program's
  /// own. It has none where we watch (EBUSY).
  void HideFrom(Vma& vma) const;

  /// Ends the watch. The process, which may run, has `now`.
  void End(const std::vector<Vma>& now);

 private:
  explicit WriteTracker(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  PageRanges watched_;
  std::vector<PageRange> areas_;  // each as it was watched
};

}  // namespace stasis::engine
