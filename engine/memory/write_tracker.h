// Which pages of a running process are written to: an asynchronous userfaultfd, which costs the process a
// fault of about a microsecond at the first write to a page, and never makes it wait for us.
#pragma once

#include <cstdint>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/page_ranges.h"
#include "engine/proc/maps.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

/// Belongs to one address space: after an execve(2), and in children, nothing is watched, and PageMap says
/// so. Destroyed, or when we die, the process is as before; End() does that in steps that nobody feels.
class WriteTracker {
 public:
  /// In `process`, which stands still. Unimplemented: this kernel cannot (Linux 6.7). Other errors: this
  /// process cannot, for lack of a descriptor for one.
  static Result<WriteTracker> Begin(FrozenProcess& process);

  /// Watches `vma`, if it is private anonymous memory of small pages and not watched by somebody else; what
  /// lies there may be another area by now. The process may run.
  void Watch(const Vma& vma);

  /// What is watched; areas may have gone since, and the heap and stacks may have grown.
  const PageRanges& watched() const { return watched_; }

  /// Takes from the flags of `vma` what they have by this watch ("uw"), and would be refused as the program's
  /// own. It has none where we watch (EBUSY).
  void HideFrom(Vma& vma) const;

  /// Ends the watch. The process may run.
  void End();

 private:
  explicit WriteTracker(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;  // the userfaultfd
  PageRanges watched_;
};

}  // namespace stasis::engine
