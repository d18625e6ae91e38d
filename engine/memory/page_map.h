// Which pages of a process have content that only its memory holds.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

inline constexpr std::uint64_t kPageBytes = 4096;

/// Consecutive pages; addresses in the process (or offsets in an object), page-aligned.
struct PageRange {
  std::uint64_t start = 0;
  std::uint64_t end = 0;  ///< Exclusive.

  std::uint64_t page_count() const { return (end - start) / kPageBytes; }
};

/// The page tables of one process, by the ioctl PAGEMAP_SCAN (Linux 6.7).
class PageMap {
 public:
  /// `proc_fd` is the directory /proc/PID. Unimplemented: the kernel has no PAGEMAP_SCAN.
  static Result<PageMap> Open(int proc_fd);

  /// Pages from `start` to `end` that are present or swapped out, in rising order, adjacent ones
  /// merged; neither the shared zero page nor guard pages. `file_too`: also pages that are still
  /// the page cache's; without it, of a private file mapping, those that were copied on write.
  Result<std::vector<PageRange>> WithContent(std::uint64_t start, std::uint64_t end,
                                             bool file_too) const;
  /// Pages that madvise(2) MADV_GUARD_INSTALL made (Linux 6.13).
  Result<std::vector<PageRange>> Guards(std::uint64_t start, std::uint64_t end) const;

 private:
  PageMap(UniqueFd fd, bool knows_guards) : fd_(std::move(fd)), knows_guards_(knows_guards) {}
  Result<std::vector<PageRange>> Scan(std::uint64_t start, std::uint64_t end, std::uint64_t without,
                                      std::uint64_t with, std::uint64_t any_of) const;

  UniqueFd fd_;
  bool knows_guards_ = false;
};

}  // namespace stasis::engine
