// Source  Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h; tested on 6.1 and 6.18
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
//         (pagemap_scan_pmd_entry()): 0.4 ms for 1 GiB, where others take 3 to 7. Holes are WRITTEN to it, but on
//         kernels before the middle of 2026 not those without a page table, which a huge page leaves behind when it
//         goes ("fix PAGEMAP_SCAN written state for PMD holes"), and never those of hugetlb. So where a trial does
//         not show them, what is unwritten is asked for as such.
// Rule    Read page by page, an entry shows the zero page as one that is present, of no file, and not mapped by one
//         process alone; its number, which only CAP_SYS_ADMIN sees, tells it from one that a child has too.
// Rule    Without asking for PRESENT it installs markers where there is no page (2 MiB of page tables for 1 GiB),
//         which stay when a page of shared memory goes, and count as swapped.
// Rule    PM_SCAN_CHECK_WPASYNC ends with EPERM at an area that is not under an asynchronous userfaultfd.
#include "engine/memory/page_map.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "engine/base/io.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/userfault.h"

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
constexpr unsigned kUserModeOnly = 1;                             // UFFD_USER_MODE_ONLY
constexpr std::uint64_t kProtectMatching = 1, kCheckWatched = 2;  // PM_SCAN_*

// Of the entries of /proc/PID/pagemap.
constexpr std::uint64_t kEntryPresent = 1ULL << 63, kEntrySwapped = 1ULL << 62,
                        kEntryFile = 1ULL << 61, kEntryAlone = 1ULL << 56,
                        kEntryNumber = (1ULL << 55) - 1;

constexpr std::size_t kEntriesPerCall = 8192;

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

std::uint64_t EntryAt(int pagemap, const void* address) {
  std::uint64_t entry = 0;
  const Status read =
      ReadExactAt(pagemap, std::as_writable_bytes(std::span(&entry, 1)),
                  reinterpret_cast<std::uintptr_t>(address) / kPageBytes * sizeof(entry));
  return read.ok() ? entry : 0;
}

// The number of the zero page, which is the kernel's for good; 0 where it does not tell.
std::uint64_t FindZeroPage() {
  void* const page =
      ::mmap(nullptr, kPageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (page == MAP_FAILED) return 0;
  const Result<UniqueFd> ours = OpenAt(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);
  const std::uint64_t entry = ours.ok() ? EntryAt(ours->get(), page) : 0;
  ::munmap(page, kPageBytes);
  return (entry & kEntryPresent) != 0 && (entry & (kEntryFile | kEntryAlone)) == 0
             ? entry & kEntryNumber
             : 0;
}

bool IsOwn(std::uint64_t entry, std::uint64_t zero_page) {
  if ((entry & (kEntryPresent | kEntrySwapped)) == 0 || (entry & kEntryFile) != 0) return false;
  const bool is_zero = (entry & (kEntryPresent | kEntryAlone)) == kEntryPresent && zero_page != 0 &&
                       (entry & kEntryNumber) == zero_page;
  return !is_zero;
}

// Whether a hole that has no page table is WRITTEN: tried on one of ours.
bool ShowsHoles() {
  constexpr std::uint64_t kBytes = std::uint64_t{4} << 20;
  const UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | kUserModeOnly)));
  const Result<UniqueFd> pagemap = OpenAt(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);
  void* const hole = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED) return false;
  const absl::Cleanup unmap = [&] { ::munmap(hole, kBytes); };
  const auto start = reinterpret_cast<std::uint64_t>(hole);
  if (!fd || !pagemap.ok() || !StartUserfault(fd.get()).ok() ||
      !WatchRange(fd.get(), {start, start + kBytes})) {
    return false;
  }
  std::array<Region, 2> regions;
  ScanArgument argument = {};
  argument.flags = kCheckWatched;
  argument.start = start;
  argument.end = start + kBytes;
  argument.category_mask = argument.return_mask = kWritten;
  return ScanOnce(pagemap->get(), regions, argument) == 1 && regions[0].start == start &&
         regions[0].end == start + kBytes;
}

}  // namespace

Result<PageMap> PageMap::Open(int proc_fd, bool may_scan) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(proc_fd, "pagemap", O_RDONLY));
  const bool knows_guards = may_scan && Knows(fd.get(), kGuard);
  const bool scans = knows_guards || (may_scan && Knows(fd.get(), 0));
  return PageMap(std::move(fd), scans, knows_guards);
}

Result<PageMap::Own> PageMap::FindOwn(std::uint64_t start, std::uint64_t end) const {
  if (!scans_) return ReadOwn(start, end);
  Own own;
  const Selection selection = {.without = kZeroPage | kFile,
                               .any_of = kPresent | kSwapped,
                               .told = knows_guards_ ? kGuard : 0};
  RETURN_IF_ERROR(Scan(start, end, selection, [&own](PageRange pages, std::uint64_t categories) {
    Append((categories & kGuard) != 0 ? own.guards : own.content, pages);
  }));
  return own;
}

Result<std::vector<PageRange>> PageMap::FindGuards(std::uint64_t start, std::uint64_t end) const {
  if (!knows_guards_) return PageRanges();
  return Scan(start, end, {.with = kGuard});
}

Result<PageMap::Own> PageMap::ReadOwn(std::uint64_t start, std::uint64_t end) const {
  static const std::uint64_t kZeroPage = FindZeroPage();
  Own own;
  std::vector<std::uint64_t> entries;
  for (std::uint64_t at = start; at < end;) {
    entries.resize(std::min<std::uint64_t>(kEntriesPerCall, (end - at) / kPageBytes));
    RETURN_IF_ERROR(Annotate(ReadExactAt(fd_.get(), std::as_writable_bytes(std::span(entries)),
                                         at / kPageBytes * sizeof(entries.front())),
                             "pagemap"));
    for (const std::uint64_t entry : entries) {
      if (IsOwn(entry, kZeroPage)) Append(own.content, {at, at + kPageBytes});
      at += kPageBytes;
    }
  }
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

Result<std::vector<PageRange>> PageMap::TakeAll(std::uint64_t start, std::uint64_t end) const {
  Result<std::vector<PageRange>> ranges =
      Scan(start, end, {.with = kWritten, .flags = kCheckWatched | kProtectMatching});
  if (ErrnoOf(ranges.status()) == EPERM) return FailedPrecondition("nobody watches this area");
  return ranges;
}

Result<std::vector<PageRange>> PageMap::Unwritten(std::uint64_t start, std::uint64_t end,
                                                  bool huge) const {
  static const bool kShowsHoles = ShowsHoles();
  if (huge || !kShowsHoles) {
    return Scan(start, end, {.without = kWritten, .with = kWatched, .any_of = kPresent | kSwapped});
  }
  const Result<PageRanges> written = Scan(start, end, {.with = kWritten, .flags = kCheckWatched});
  if (ErrnoOf(written.status()) == EPERM) {  // a part of it is not watched
    return Scan(start, end, {.without = kWritten, .with = kWatched, .any_of = kPresent | kSwapped});
  }
  RETURN_IF_ERROR(written.status());
  return Subtract({{start, end}}, *written);
}

bool PageMap::IsWatched(std::uint64_t start, std::uint64_t end) const {
  std::uint64_t at = start;  // of what is not mapped nothing is told, and no error
  const Status status = Scan(start, end, {.with = kWatched, .flags = kCheckWatched},
                             [&at](const PageRange& range, std::uint64_t) {
                               if (range.start == at) at = range.end;
                             });
  return status.ok() && at == end;
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
