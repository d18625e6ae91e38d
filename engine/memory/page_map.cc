// Source  Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h; tested on 6.18
// Rule    A page is reported when ((categories ^ inverted) & mask) == mask and some of
//         ((categories ^ inverted) & anyof) is set: an inverted category in the mask must be
//         absent.
// Rule    Markers count as swapped: a guard page has GUARD and SWAPPED, so guards are told apart by
//         name. PAGE_IS_GUARD came two versions after guard pages (6.15, 6.13); a kernel between
//         has them unseen, and reading one then fails, which ends the dump.
// Rule    walk_end may be behind what was reported: the kernel walks again for every 512 regions
//         (PAGEMAP_WALK_SIZE), notes where a walk was cut short, and forgets to clear that when the
//         next one reaches the end (do_pagemap_scan() in fs/proc/task_mmu.c).
// Rule    PM_SCAN_WP_MATCHING write-protects what it reports, in one step with the look at it; a page is
//         WRITTEN when it is not protected. Asking for PRESENT too keeps it from filling the page tables of
//         reservations with markers.
// Rule    A scan for WRITTEN alone, and nothing else given back, takes a short way through the page tables
//         (pagemap_scan_pmd_entry()): 0.6 ms for 1 GiB, where others take 3 to 7. Holes are WRITTEN to it.
// Rule    PM_SCAN_CHECK_WPASYNC ends with EPERM at an area that is not under an asynchronous userfaultfd.
#include "engine/memory/page_map.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "engine/base/io.h"
#include "engine/memory/page_ranges.h"

namespace stasis::engine {
namespace {

// struct pm_scan_arg and struct page_region: Debian 12's headers are older.
struct ScanArgument {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(ScanArgument) == 96);
struct Region {
  std::uint64_t start, end, categories;
};
static_assert(sizeof(Region) == 24);

constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);
constexpr std::uint64_t kWatched = 1, kWritten = 2, kFile = 4, kPresent = 8, kSwapped = 16,
                        kZeroPage = 32, kGuard = 256;
constexpr std::uint64_t kProtectMatching = 1, kCheckWatched = 2;  // PM_SCAN_*

constexpr std::size_t kRegionsPerCall = 1024;

// Fills `regions`, and `argument.walk_end` with where to go on.
long ScanOnce(int fd, std::span<Region> regions, ScanArgument& argument) {
  argument.size = sizeof(argument);
  argument.vec = reinterpret_cast<std::uint64_t>(regions.data());
  argument.vec_len = regions.size();
  return ::ioctl(fd, kPagemapScan, &argument);
}

bool Knows(int fd, std::uint64_t category) {
  std::array<Region, 1> regions;
  ScanArgument nothing = {};  // an empty range
  nothing.category_inverted = nothing.category_mask = category;
  nothing.category_anyof_mask = kPresent;
  return ScanOnce(fd, regions, nothing) >= 0;
}

}  // namespace

Result<PageMap> PageMap::Open(int proc_fd) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(proc_fd, "pagemap", O_RDONLY));
  const bool knows_guards = Knows(fd.get(), kGuard);
  if (!knows_guards && !Knows(fd.get(), 0)) {
    return Unimplemented("this kernel has no PAGEMAP_SCAN; Linux 6.7 or later is needed");
  }
  return PageMap(std::move(fd), knows_guards);
}

Result<PageMap::Own> PageMap::FindOwn(std::uint64_t start, std::uint64_t end) const {
  Own own;
  const Selection selection = {.without = kZeroPage | kFile,
                               .any_of = kPresent | kSwapped,
                               .told = knows_guards_ ? kGuard : 0};
  RETURN_IF_ERROR(Scan(start, end, selection, [&own](PageRange pages, std::uint64_t categories) {
    Append((categories & kGuard) != 0 ? own.guards : own.content, pages);
  }));
  return own;
}

Result<std::vector<PageRange>> PageMap::TakeWritten(std::uint64_t start, std::uint64_t end) const {
  return Scan(
      start, end,
      {.without = kZeroPage, .with = kWatched | kWritten | kPresent, .flags = kProtectMatching});
}

Result<std::vector<PageRange>> PageMap::Written(std::uint64_t start, std::uint64_t end) const {
  return Scan(start, end, {.without = kZeroPage, .with = kWatched | kWritten | kPresent});
}

Result<std::vector<PageRange>> PageMap::NotClean(std::uint64_t start, std::uint64_t end) const {
  Result<std::vector<PageRange>> ranges =
      Scan(start, end, {.with = kWritten, .flags = kCheckWatched});
  if (ErrnoOf(ranges.status()) == EPERM) return FailedPrecondition("nobody watches this area");
  return ranges;
}

Status PageMap::Scan(std::uint64_t start, std::uint64_t end, const Selection& selection,
                     const Take& take) const {
  std::array<Region, kRegionsPerCall> regions;
  std::uint64_t seen = start;
  while (seen < end) {
    ScanArgument argument = {};
    argument.flags = selection.flags;
    argument.start = seen;
    argument.end = end;
    argument.category_inverted = selection.without;
    argument.category_mask = selection.with | selection.without;
    argument.category_anyof_mask = selection.any_of;
    // Adjacent regions with equal returned categories are merged.
    argument.return_mask = selection.with | selection.told;
    const long count = ScanOnce(fd_.get(), regions, argument);
    if (count < 0) {
      return SyscallError(errno, "PAGEMAP_SCAN");
    }
    // All before the end of the last region was looked at, whatever walk_end says.
    std::uint64_t next = argument.walk_end;
    for (const Region& region : std::span(regions).first(static_cast<std::size_t>(count))) {
      take({region.start, region.end}, region.categories);
      next = std::max(next, region.end);
    }
    if (next <= seen) return Internal("PAGEMAP_SCAN does not go on");
    seen = next;
  }
  return OkStatus();
}

Result<std::vector<PageRange>> PageMap::Scan(std::uint64_t start, std::uint64_t end,
                                             const Selection& selection) const {
  PageRanges ranges;
  RETURN_IF_ERROR(Scan(start, end, selection,
                       [&ranges](PageRange pages, std::uint64_t) { Append(ranges, pages); }));
  return ranges;
}

}  // namespace stasis::engine
