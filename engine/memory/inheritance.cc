// Source  fork(2), madvise(2), mlock(2); dup_mmap() in mm/mmap.c; tested on 6.18
// Rule    A child has its parent's areas with their protection and advice, and its private pages until one
//         of the two writes. It has no locks, nothing of MADV_DONTFORK, and zeros for MADV_WIPEONFORK.
// Rule    MADV_DONTNEED gives private memory its first content back: zeros, or the file's.
#include "engine/memory/inheritance.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

namespace stasis::engine {
namespace {

constexpr std::uint64_t Bit(int advice) { return std::uint64_t{1} << advice; }
constexpr std::uint64_t kNotInherited = Bit(MADV_DONTFORK) | Bit(MADV_WIPEONFORK);

bool OverlapsAny(const AreaImage& area, const std::vector<AddressRange>& ranges) {
  return std::ranges::any_of(ranges, [&](const auto& range) { return range.Overlaps(area.range); });
}

// A child has no asynchronous I/O contexts, whatever lies where its parent's are.
bool CanKeep(const AreaImage& area, const MemoryLayout& layout) {
  const bool is_private =
      area.kind == AreaImage::Kind::kAnonymous || area.kind == AreaImage::Kind::kPrivateFile;
  // MADV_DONTNEED takes huge pages only whole.
  const bool is_huge = (area.map_flags & MAP_HUGETLB) != 0;
  return is_private && !is_huge && !area.droppable && (area.advice & kNotInherited) == 0 &&
         !OverlapsAny(area, layout.guards) && !OverlapsAny(area, layout.aio_rings);
}

bool IsAlike(const AreaImage& a, const AreaImage& b) {
  return a.range == b.range && a.kind == b.kind && a.prot == b.prot && a.map_flags == b.map_flags &&
         a.object == b.object && a.offset == b.offset && a.open_flags == b.open_flags &&
         a.advice == b.advice && a.droppable == b.droppable;
}

// `calls` for each part of `runs` that lies in `within`; both rise.
template <typename Call>
void ForEachPart(const std::vector<AddressRange>& runs, const AddressRange& within, Call call) {
  auto run = std::ranges::upper_bound(runs, within.start, {}, &AddressRange::end);
  for (; run != runs.end() && run->start < within.end; ++run) {
    call(AddressRange{std::max(run->start, within.start), std::min(run->end, within.end)});
  }
}

}  // namespace

Inheritance::Inheritance(const MemoryLayout& parent, const PageSet& parent_pages,
                         const MemoryLayout& own) {
  auto theirs = parent.areas.begin();
  for (const AreaImage& area : own.areas) {
    while (theirs != parent.areas.end() && theirs->range.start < area.range.start) ++theirs;
    if (theirs == parent.areas.end()) break;
    if (!IsAlike(area, *theirs) || !CanKeep(area, own) || !CanKeep(area, parent)) {
      continue;
    }
    areas_.push_back(area.range);
    ForEachPart(parent_pages.runs, area.range,
                [this](const AddressRange& part) { pages_.push_back(part); });
  }
}

bool Inheritance::Has(const AreaImage& area) const {
  return std::ranges::binary_search(areas_, area.range.start, {}, &AddressRange::start);
}

std::vector<AddressRange> Inheritance::PagesIn(const AddressRange& range) const {
  std::vector<AddressRange> parts;
  ForEachPart(pages_, range, [&parts](const AddressRange& part) { parts.push_back(part); });
  return parts;
}

Status DropPages(RestoredProcess& process, const Inheritance& inherited, const PageSet& own) {
  const auto drop = [&process](const AddressRange& range) -> Status {
    if (range.empty()) return OkStatus();
    return process.remote
        ->Call("madvise MADV_DONTNEED", SYS_madvise, range.start, range.size(), MADV_DONTNEED)
        .status();
  };
  for (const AddressRange& run : inherited.pages()) {
    std::vector<AddressRange> kept;
    ForEachPart(own.runs, run, [&kept](const AddressRange& part) { kept.push_back(part); });
    std::uint64_t at = run.start;
    for (const AddressRange& part : kept) {
      RETURN_IF_ERROR(drop({at, part.start}));
      at = part.end;
    }
    RETURN_IF_ERROR(drop({at, run.end}));
  }
  return OkStatus();
}

}  // namespace stasis::engine
