// Source  mmap(2), madvise(2); the image's own bits: CRIU's vma.proto and its status flags
#include "engine/memory/restore_layout.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/base/io.h"
#include "engine/image/image_file.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08  // Linux 6.11
#endif

namespace stasis::engine {
namespace {

// VmaEntry.status
enum VmaStatus : std::uint32_t {
  kRegular = 1 << 0,
  kVsyscall = 1 << 2,
  kVdso = 1 << 3,
  kFilePrivate = 1 << 6,
  kFileShared = 1 << 7,
  kAnonShared = 1 << 8,
  kAnonPrivate = 1 << 9,
  kSysVIpc = 1 << 10,
  kSocket = 1 << 11,
  kVvar = 1 << 12,
  kAioRing = 1 << 13,
  kMemfd = 1 << 14,
  kShadowStack = 1 << 15,
  kGuard = 1 << 16,
  kUprobes = 1 << 17,
  kPlugin = 1 << 27,
};
constexpr std::uint32_t kKinds = kFilePrivate | kFileShared | kAnonShared | kAnonPrivate | kSocket;

struct NamedStatus {
  std::uint32_t bit;
  const char* name;
};
constexpr std::array kUnsupported = {
    NamedStatus{kShadowStack, "a shadow stack"},
    NamedStatus{kUprobes, "a uprobes area"},
};

// Flags that say nothing about the area any more (mmap(2): ignored), or that we apply by other means.
constexpr std::uint32_t kIgnoredFlags = MAP_LOCKED | MAP_STACK | MAP_DENYWRITE | MAP_EXECUTABLE |
                                        MAP_FIXED | MAP_POPULATE | MAP_NONBLOCK;
constexpr std::uint32_t kKeptFlags = MAP_GROWSDOWN | MAP_NORESERVE | MAP_ANONYMOUS | kHugePageFlags;

// Areas that a process has besides those of its image while we work in it: our area's two, the three
// of the vDSO, one for shared memory under construction.
constexpr std::uint64_t kAreasOfOurs = 6;

// Advice that stays with an area, and that the image may therefore hold. Others act at once, and an image
// could destroy memory with them.
constexpr std::uint64_t kKnownAdvice = 1ull << MADV_RANDOM | 1ull << MADV_SEQUENTIAL |
                                       1ull << MADV_DONTFORK | 1ull << MADV_MERGEABLE |
                                       1ull << MADV_HUGEPAGE | 1ull << MADV_NOHUGEPAGE |
                                       1ull << MADV_DONTDUMP | 1ull << MADV_WIPEONFORK;

bool PageAligned(std::uint64_t value) { return value % kPageBytes == 0; }

Status CheckPlace(const image::VmaEntry& vma) {
  if (vma.start() >= vma.end() || vma.end() > kTaskSize || !PageAligned(vma.start()) ||
      !PageAligned(vma.end())) {
    return InvalidArgument("no program can have memory there");
  }
  // An offset is 64 bits of bytes in the image, and with the area's length it must stay below what a
  // file can have (loff_t).
  constexpr std::uint64_t kMaxOffset = std::uint64_t{1} << 62;
  if (!PageAligned(vma.pgoff()) || vma.pgoff() > kMaxOffset) {
    return InvalidArgument(absl::StrCat("impossible offset ", vma.pgoff(), " in its file"));
  }
  return OkStatus();
}

Status CheckSupported(const image::VmaEntry& vma) {
  for (const NamedStatus& kind : kUnsupported) {
    if (vma.status() & kind.bit) {
      return Unimplemented(std::string(kind.name) + " cannot be restored");
    }
  }
  const bool known = (vma.status() & (kAnonPrivate | kAnonShared | kMemfd)) != 0;
  if ((vma.flags() & MAP_HUGETLB) != 0 && !known) {
    return Unimplemented("files of huge pages (hugetlb) cannot be restored");
  }
  return OkStatus();
}

Status ReadKind(const image::VmaEntry& vma, AreaImage& area) {
  if ((vma.status() & kPlugin) != 0) {
    if ((vma.status() & kKinds) != kFileShared) {
      return Unimplemented("memory of a CRIU plugin cannot be restored");
    }
    area.kind = AreaImage::Kind::kRing;  // mapped when the ring is there (files/io_uring_restore.h)
    return OkStatus();
  }
  switch (vma.status() & kKinds) {
    case kAnonPrivate:
      area.kind = AreaImage::Kind::kAnonymous;
      return OkStatus();
    case kFilePrivate:
      area.kind = AreaImage::Kind::kPrivateFile;
      area.open_flags = O_RDONLY;
      break;
    case kFileShared:
      area.kind = AreaImage::Kind::kSharedFile;
      // mmap(2) wants a readable descriptor always, and a writable one for PROT_WRITE, now or later.
      // Nothing else that an image may have in this field (O_TRUNC!) is looked at.
      area.open_flags = (vma.fdflags() & O_ACCMODE) != O_RDONLY || (vma.prot() & PROT_WRITE) != 0
                            ? O_RDWR
                            : O_RDONLY;
      break;
    case kSocket:
      area.kind = AreaImage::Kind::kSocket;
      area.open_flags = O_RDWR;
      break;
    case kAnonShared:
      area.kind = AreaImage::Kind::kSharedAnonymous;
      if ((vma.status() & kSysVIpc) == 0) break;
      area.kind = AreaImage::Kind::kSystemV;
      // CRIU does not say how it was attached.
      area.open_flags = vma.has_fdflags() ? static_cast<int>(vma.fdflags() & O_ACCMODE) : O_RDWR;
      break;
    default:
      return InvalidArgument(absl::StrCat("contradicting status ", vma.status()));
  }
  area.object = vma.shmid();
  area.offset = vma.pgoff();
  return OkStatus();
}

Status ReadFlags(const image::VmaEntry& vma, AreaImage& area) {
  const std::uint32_t flags = vma.flags();
  const std::uint32_t type = flags & MAP_TYPE;
  area.droppable = type == MAP_DROPPABLE;
  const bool shared =
      area.kind == AreaImage::Kind::kSharedFile || area.kind == AreaImage::Kind::kRing ||
      area.kind == AreaImage::Kind::kSharedAnonymous || area.kind == AreaImage::Kind::kSystemV ||
      (area.kind == AreaImage::Kind::kSocket && type == MAP_SHARED);
  const bool anonymous = area.kind == AreaImage::Kind::kAnonymous ||
                         area.kind == AreaImage::Kind::kSharedAnonymous ||
                         area.kind == AreaImage::Kind::kSystemV;
  const bool type_fits =
      shared ? type == MAP_SHARED || type == MAP_SHARED_VALIDATE
             : type == MAP_PRIVATE || (area.droppable && area.kind == AreaImage::Kind::kAnonymous);
  const std::uint32_t known = MAP_TYPE | kKeptFlags | kIgnoredFlags;
  // What CRIU writes of a segment has MAP_ANONYMOUS or not, by its version.
  const bool segment = area.kind == AreaImage::Kind::kSystemV;
  if (!type_fits || (!segment && anonymous != ((flags & MAP_ANONYMOUS) != 0))) {
    return InvalidArgument(absl::StrCat("mmap flags ", flags, " contradict status ", vma.status()));
  }
  if (flags & ~known) return Unimplemented(absl::StrCat("unknown mmap flags ", flags & ~known));
  const int map_type = area.droppable ? MAP_DROPPABLE : shared ? MAP_SHARED : MAP_PRIVATE;
  area.map_flags = map_type | static_cast<int>(flags & kKeptFlags);
  if ((flags & MAP_HUGETLB) == 0) area.map_flags &= ~static_cast<int>(kHugePageFlags);
  area.locked = (flags & MAP_LOCKED) != 0;
  return OkStatus();
}

Result<AreaImage> ReadArea(const image::VmaEntry& vma) {
  constexpr std::uint32_t kAllProtections = PROT_READ | PROT_WRITE | PROT_EXEC;
  AreaImage area;
  area.range = {vma.start(), vma.end()};
  area.prot = static_cast<int>(vma.prot());
  area.advice = vma.madv();
  if ((vma.prot() & ~kAllProtections) != 0 || (vma.status() & kRegular) == 0) {
    return InvalidArgument(
        absl::StrCat("strange protection ", vma.prot(), " or status ", vma.status()));
  }
  if (vma.madv() & ~kKnownAdvice) {
    return Unimplemented(absl::StrCat("unknown advice ", vma.madv() & ~kKnownAdvice));
  }
  RETURN_IF_ERROR(ReadKind(vma, area));
  RETURN_IF_ERROR(ReadFlags(vma, area));
  return area;
}

// `vma`, as anonymous shared memory if it maps one of `files`.
image::VmaEntry AsAnonymous(image::VmaEntry vma, const ZeroFiles& files) {
  if ((vma.status() & (kMemfd | kFileShared)) != (kMemfd | kFileShared)) return vma;
  const auto object = files.find(vma.shmid());
  if (object == files.end()) return vma;
  vma.set_status(kRegular | kAnonShared);
  vma.set_flags(vma.flags() | MAP_ANONYMOUS);
  vma.set_shmid(object->second);
  return vma;
}

// Adds `vma` to `layout`. Areas come by rising address; the vvar may come in parts.
Status AddVma(const image::VmaEntry& vma, MemoryLayout& layout) {
  if (vma.status() & kVsyscall)
    return OkStatus();  // the same page in every process, above TASK_SIZE
  RETURN_IF_ERROR(CheckPlace(vma));
  RETURN_IF_ERROR(CheckSupported(vma));
  const AddressRange range = {vma.start(), vma.end()};
  if (vma.status() & kGuard) {
    layout.guards.push_back(range);
  } else if (vma.status() & kVvar) {
    if (!layout.vvar.empty() && layout.vvar.end != range.start) {
      return InvalidArgument("the vDSO's data lies apart");
    }
    layout.vvar = {layout.vvar.empty() ? range.start : layout.vvar.start, range.end};
  } else if (vma.status() & kVdso) {
    if (!layout.vdso.empty()) return InvalidArgument("a second vDSO");
    layout.vdso = range;
  } else if (vma.status() & kAioRing) {
    // Memory of its own, for its content, until the ring takes its place.
    layout.areas.push_back(
        {.range = range, .prot = PROT_READ | PROT_WRITE, .map_flags = MAP_PRIVATE | MAP_ANONYMOUS});
    layout.aio_rings.push_back(range);
  } else {
    ASSIGN_OR_RETURN(const AreaImage area, ReadArea(vma));
    layout.areas.push_back(area);
  }
  return OkStatus();
}

// Real areas neither overlap nor come out of order, and none touches our own.
Status CheckOrder(const image::MmEntry& mm, const AddressRange& our_area) {
  std::uint64_t last_end = 0;
  for (const image::VmaEntry& vma : mm.vmas()) {
    if (vma.status() & (kGuard | kVsyscall)) continue;
    const AddressRange range = {vma.start(), vma.end()};
    if (range.start < last_end) {
      return InvalidArgument(ToText(range) + " overlaps the area before it, or is out of order");
    }
    if (range.Overlaps(our_area)) {
      return Internal(ToText(range) + " lies where the restore works (" + ToText(our_area) + ")");
    }
    last_end = range.end;
  }
  return OkStatus();
}

// Guard pages are parts of areas that follow each other without a gap.
Status CheckGuards(const MemoryLayout& layout) {
  for (const AddressRange& guard : layout.guards) {
    auto area =
        std::upper_bound(layout.areas.begin(), layout.areas.end(), guard.start,
                         [](std::uint64_t at, const AreaImage& a) { return at < a.range.end; });
    std::uint64_t reached = guard.start;
    for (; area != layout.areas.end() && area->range.start <= reached; ++area) {
      reached = area->range.end;
      if (reached >= guard.end) break;
    }
    if (reached < guard.end) {
      return InvalidArgument("guard pages " + ToText(guard) + " lie within no area");
    }
  }
  return OkStatus();
}

}  // namespace

std::string ToText(const AddressRange& range) {
  return absl::StrCat(absl::Hex(range.start), "-", absl::Hex(range.end));
}

std::optional<std::uint64_t> FindGap(std::vector<AddressRange> busy, std::uint64_t size,
                                     const AddressRange& within) {
  std::sort(busy.begin(), busy.end(),
            [](const AddressRange& a, const AddressRange& b) { return a.start < b.start; });
  std::uint64_t start = within.start;
  for (const AddressRange& range : busy) {
    if (range.start >= start && range.start - start >= size) break;
    start = std::max(start, range.end);
  }
  if (start > within.end || within.end - start < size) return std::nullopt;
  return start;
}

Result<std::uint64_t> VmSysctl(const std::string& name) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/sys/vm/" + name));
  std::uint64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) return Internal("/proc/sys/vm/" + name + ": " + text);
  return value;
}

std::set<std::uint64_t> OpenZeroFiles(const CheckpointImages& images) {
  std::set<std::uint32_t> files;
  for (const ProcessImage& process : images.processes) {
    for (const image::FdinfoEntry& descriptor : process.descriptors) {
      if (descriptor.type() == image::FD_MEMFD) files.insert(descriptor.id());
    }
    for (const image::VmaEntry& vma : process.mm.vmas()) {
      const bool is_private = (vma.status() & (kMemfd | kFilePrivate)) == (kMemfd | kFilePrivate);
      if (is_private) files.insert(static_cast<std::uint32_t>(vma.shmid()));
    }
  }
  std::set<std::uint64_t> inodes;
  for (const std::uint32_t id : files) {
    const image::FileEntry* const entry = images.File(image::FD_MEMFD, id);
    if (entry != nullptr) inodes.insert(entry->memfd().inode_id());
  }
  return inodes;
}

Result<ZeroFiles> ReadZeroFiles(const CheckpointImages& images, const ImageSource& source) {
  ASSIGN_OR_RETURN(const std::vector<image::MemfdInodeEntry> inodes,
                   ReadRecords<image::MemfdInodeEntry>(source, ImageName("memfd"), "memfd"));
  std::map<std::uint64_t, std::uint64_t> objects;  // by inode
  const std::set<std::uint64_t> files_too = OpenZeroFiles(images);
  for (const image::MemfdInodeEntry& inode : inodes) {
    if (inode.name() == kZeroFile && !files_too.contains(inode.inode_id()))
      objects[inode.inode_id()] = inode.shmid();
  }
  ZeroFiles files;
  for (const image::FileEntry& file : images.files) {
    if (file.type() != image::FD_MEMFD) continue;
    const auto object = objects.find(file.memfd().inode_id());
    if (object != objects.end()) files[file.id()] = object->second;
  }
  return files;
}

Result<MemoryLayout> ReadLayout(const image::MmEntry& mm, const ZeroFiles& zero_files,
                                const AddressRange& our_area) {
  ASSIGN_OR_RETURN(const std::uint64_t limit, VmSysctl("max_map_count"));
  const auto count = static_cast<std::uint64_t>(mm.vmas_size());
  if (count + kAreasOfOurs > limit) {
    return ResourceExhausted(absl::StrCat(
        count, " memory areas are too many for this node: raise sysctl vm.max_map_count (", limit,
        ") there"));
  }
  MemoryLayout layout;
  for (const image::VmaEntry& entry : mm.vmas()) {
    const image::VmaEntry vma = AsAnonymous(entry, zero_files);
    RETURN_IF_ERROR(
        Annotate(AddVma(vma, layout), "memory at " + ToText(AddressRange{vma.start(), vma.end()})));
  }
  RETURN_IF_ERROR(CheckOrder(mm, our_area));
  RETURN_IF_ERROR(CheckGuards(layout));
  return layout;
}

}  // namespace stasis::engine
