// Which pages of a process have content that only its memory holds.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/page_size.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

/// Consecutive pages; addresses in the process (or offsets in an object), page-aligned.
struct PageRange {
  std::uint64_t start = 0;
  std::uint64_t end = 0;  ///< Exclusive.

  std::uint64_t page_count() const { return (end - start) / kPageBytes; }
};

/// The page tables of one process, by the ioctl PAGEMAP_SCAN (Linux 6.7), or page by page.
class PageMap {
 public:
  /// `proc_fd` is the directory /proc/PID. Page by page also where it could scan, unless `may_scan`.
  static Result<PageMap> Open(int proc_fd, bool may_scan = true);

  /// True with PAGEMAP_SCAN: holes take no time. Without, each page of one costs some nanoseconds, and nothing
  /// but FindOwn works.
  bool scans() const { return scans_; }

  /// What is there from `start` to `end`, in rising order, adjacent pages merged.
  struct Own {
    /// Pages that are present or swapped out, of a private file mapping those that were copied on write;
    /// neither the shared zero page nor guards. (Without PAGEMAP_SCAN the zero page of huge size is among them.)
    std::vector<PageRange> content;
    /// Pages that madvise(2) MADV_GUARD_INSTALL made (Linux 6.13).
    std::vector<PageRange> guards;
  };
  Result<Own> FindOwn(std::uint64_t start, std::uint64_t end) const;
  /// The guards alone, which takes a tenth of the time where pages are those of a file.
  Result<std::vector<PageRange>> FindGuards(std::uint64_t start, std::uint64_t end) const;
  /// Of areas that a WriteTracker watches: pages that are present and were written (or came) since the last
  /// time; each is watched again from before this gives it. Pages of other areas are left out.
  Result<std::vector<PageRange>> TakeWritten(std::uint64_t start, std::uint64_t end) const;
  /// The same pages, which stay to be taken.
  Result<std::vector<PageRange>> Written(std::uint64_t start, std::uint64_t end) const;
  /// As TakeWritten, also of places without a page, which are watched from then on. FailedPrecondition: nobody
  /// watches it, or not all of it.
  Result<std::vector<PageRange>> TakeAll(std::uint64_t start, std::uint64_t end) const;
  /// Of what is watched: what has neither changed nor gone since it was last taken. Of a page of shared memory it
  /// may have gone from the page tables alone, and others may have written to it. `huge`: pages of hugetlb.
  Result<std::vector<PageRange>> Unwritten(std::uint64_t start, std::uint64_t end,
                                           bool huge = false) const;
  /// Whether all of it is watched.
  bool IsWatched(std::uint64_t start, std::uint64_t end) const;

 private:
  PageMap(UniqueFd fd, bool scans, bool knows_guards)
      : fd_(std::move(fd)), scans_(scans), knows_guards_(knows_guards) {}
  struct Selection {
    std::uint64_t without = 0, with = 0;  // categories that must be absent, present
    std::uint64_t any_of = 0;             // 0: no matter
    std::uint64_t told = 0;               // categories that `take` hears of
    std::uint64_t flags = 0;
  };
  using Take = std::function<void(PageRange pages, std::uint64_t categories)>;
  Status Scan(std::uint64_t start, std::uint64_t end, const Selection& selection,
              const Take& take) const;
  Result<std::vector<PageRange>> Scan(std::uint64_t start, std::uint64_t end,
                                      const Selection& selection) const;

  Result<Own> ReadOwn(std::uint64_t start, std::uint64_t end) const;

  UniqueFd fd_;
  bool scans_ = false, knows_guards_ = false;
};

}  // namespace stasis::engine
