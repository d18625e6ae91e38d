// Source  mmap(2), madvise(2), mlock(2), proc_pid_map_files(5); tested on 6.18
// Rule    An area is mapped by one call with its final protection, never split and joined again, so that
//         it stays one area (and mremap(2) over it goes on working).
// Rule    Shared anonymous memory has no name. /proc/PID/map_files opens it, for us (CAP_SYS_ADMIN) but
//         not for a container, so the others get a descriptor from us.
#include "engine/memory/restore_areas.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <span>

#include "engine/base/io.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102  // Linux 6.13
#endif

namespace stasis::engine {
namespace {

Result<UniqueFd> OpenMemory(const RestoredProcess& process) {
  return OpenAt(process.proc.get(), "mem", O_RDWR);
}

Status Unmap(RestoredProcess& process, const AddressRange& range) {
  return process.remote->Call("munmap " + ToText(range), SYS_munmap, range.start, range.size())
      .status();
}

// Shared memory for the whole of `object`, anywhere.
Result<AddressRange> MapWhole(RestoredProcess& process, const SharedObject& object) {
  const int reserve = object.no_reserve == object.areas ? MAP_NORESERVE : 0;
  ASSIGN_OR_RETURN(
      const std::uint64_t start,
      process.remote->Call("mmap " + std::to_string(object.size) + " bytes of shared memory",
                           SYS_mmap, 0, object.size, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS | reserve | object.huge_pages, -1, 0));
  return AddressRange{start, start + object.size};
}

// Linux says EINVAL for advice that it was built without. These only make memory faster or smaller.
bool IsOptional(int advice) {
  return advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE || advice == MADV_MERGEABLE;
}

Status InstallGuard(RestoredProcess& process, const AddressRange& guard) {
  const Status status = process.remote
                            ->Call("madvise MADV_GUARD_INSTALL", SYS_madvise, guard.start,
                                   guard.size(), MADV_GUARD_INSTALL)
                            .status();
  if (ErrnoOf(status) == EINVAL) {
    return FailedPrecondition("guard pages at " + ToText(guard) +
                              ": this kernel has none (Linux 6.13, in files 6.15)");
  }
  return status;
}

Status Lock(RestoredProcess& process, const AddressRange& range) {
  RemoteSyscalls& remote = *process.remote;
  const Status status = remote.Call("mlock", SYS_mlock, range.start, range.size()).status();
  if (ErrnoOf(status) != ENOMEM) return status;
  // mlock(2) also says ENOMEM when it could lock but not fill the area (PROT_NONE, guard pages). Then what
  // is there is locked, and the rest when it comes.
  return remote.Call("mlock2", SYS_mlock2, range.start, range.size(), MLOCK_ONFAULT).status();
}

// Huge pages come from a pool that the node's administrator sizes.
Status OfPool(const Status& status, int map_flags) {
  if (ErrnoOf(status) != ENOMEM || (map_flags & MAP_HUGETLB) == 0) return status;
  return Annotate(status, "not enough huge pages here (sysctl vm.nr_hugepages)");
}

}  // namespace

Status CollectSharedObjects(const MemoryLayout& layout, SharedObjects& objects) {
  for (const AreaImage& area : layout.areas) {
    if (area.kind != AreaImage::Kind::kSharedAnonymous) continue;
    if (area.offset > kTaskSize - area.range.size()) {
      return InvalidArgument("shared memory at " + ToText(area.range) +
                             " begins at the impossible offset " + std::to_string(area.offset));
    }
    SharedObject& object = objects[area.object];
    object.size = std::max(object.size, area.offset + area.range.size());
    ++object.areas;
    if (area.map_flags & MAP_NORESERVE) ++object.no_reserve;
    object.huge_pages = area.map_flags & static_cast<int>(kHugePageFlags);
  }
  return OkStatus();
}

Status ClearMemory(RestoredProcess& process, const AddressRange& vdso,
                   std::vector<AddressRange> kept) {
  kept.push_back({process.area.address, process.area.address + RemoteArea::kBytes});
  kept.push_back(vdso);
  kept.push_back({kTaskSize, kTaskSize});
  std::ranges::sort(kept, {}, &AddressRange::start);
  std::uint64_t at = 0;
  for (const AddressRange& range : kept) {
    const AddressRange gap = {at, range.start};
    if (!gap.empty()) RETURN_IF_ERROR(Unmap(process, gap));  // munmap(2) does not mind holes
    at = range.end;
  }
  return OkStatus();
}

Status MakeSharedObject(RestoredProcess& process, const ImageSource& source, SharedObject& object,
                        const std::function<void(std::uint64_t)>& on_pages) {
  ASSIGN_OR_RETURN(const AddressRange whole, MapWhole(process, object));
  ASSIGN_OR_RETURN(const UniqueFd mem, OpenMemory(process));
  const PageTarget target = {.range = {0, object.size}, .address = whole.start};
  RETURN_IF_ERROR(
      WritePages(source, object.pages, std::span(&target, 1), process.pid, mem.get(), on_pages));
  ASSIGN_OR_RETURN(object.fd, OpenAt(process.proc.get(), "map_files/" + ToText(whole), O_RDWR));
  return Unmap(process, whole);
}

Status AreaMapper::Map(const AreaImage& area) {
  constexpr std::size_t kMostPending = 1024;
  if (pending_.size() >= kMostPending) RETURN_IF_ERROR(MapPending());
  if (area.kind == AreaImage::Kind::kRing) return OkStatus();
  if (area.kind == AreaImage::Kind::kSystemV && segments_.IsPart(area)) {
    parts_.push_back(area);
    return OkStatus();
  }
  if (area.kind == AreaImage::Kind::kSystemV) {
    RETURN_IF_ERROR(segments_.Attach(process_, area));
    AddAdvice(area);
    return OkStatus();
  }
  if (area.kind == AreaImage::Kind::kAnonymous && (area.map_flags & MAP_HUGETLB) == 0) {
    AddAnonymous(area);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const int fd, DescriptorOf(area));
  // An object has a descriptor, so its memory is no longer "anonymous" in mmap's sense.
  const int flags =
      fd < 0 ? area.map_flags : area.map_flags & ~MAP_ANONYMOUS & ~static_cast<int>(kHugePageFlags);
  const Result<std::uint64_t> start = process_.remote->Call(
      "mmap " + ToText(area.range), SYS_mmap, area.range.start, area.range.size(), area.prot,
      flags | MAP_FIXED_NOREPLACE, fd, fd < 0 ? 0 : area.offset);
  RETURN_IF_ERROR(OfPool(start.status(), flags));
  if (*start != area.range.start) {
    return Internal("mmap " + ToText(area.range) + ": the kernel chose another address");
  }
  AddAdvice(area);
  return OkStatus();
}

// Of the stacks of threads there may be thousands.
void AreaMapper::AddAnonymous(const AreaImage& area) {
  const AddressRange range = area.range;
  const auto word = [](int value) { return static_cast<std::uint64_t>(value); };
  pending_.AddChecked(
      "mmap " + ToText(range), SYS_mmap,
      {range.start, range.size(), word(area.prot), word(area.map_flags | MAP_FIXED_NOREPLACE),
       word(-1), 0},
      0, [range](std::int64_t start) -> Status {
        if (static_cast<std::uint64_t>(start) == range.start) return OkStatus();
        return Internal("mmap " + ToText(range) + ": the kernel chose another address");
      });
  AddAdvice(area);
}

void AreaMapper::AddAdvice(const AreaImage& area) {
  for (int advice = 0; advice < 64; ++advice) {
    if ((area.advice >> advice & 1) == 0) continue;
    pending_.AddChecked("madvise " + std::to_string(advice), SYS_madvise,
                        {area.range.start, area.range.size(), static_cast<std::uint64_t>(advice)},
                        IsOptional(advice) ? EINVAL : 0, [](std::int64_t) { return OkStatus(); });
  }
}

Status AreaMapper::MapPending() {
  if (pending_.size() == 0) return OkStatus();
  ASSIGN_OR_RETURN(const OneRun how, RunOf(process_));
  RETURN_IF_ERROR(pending_.Begin(*process_.remote, how));
  RETURN_IF_ERROR(pending_.End());
  pending_ = CallBatch();
  return OkStatus();
}

// When all else is in its place: the whole segment is attached somewhere for a moment.
Status AreaMapper::MapParts() {
  if (parts_.empty()) return OkStatus();
  RETURN_IF_ERROR(segments_.AttachParts(process_, parts_));
  for (const AreaImage& part : parts_) AddAdvice(part);
  return MapPending();
}

Status AreaMapper::Finish() {
  RETURN_IF_ERROR(MapPending());
  RETURN_IF_ERROR(MapParts());
  RETURN_IF_ERROR(CloseDescriptor());
  if (channel_) RETURN_IF_ERROR(channel_->Close(*process_.remote));
  channel_.reset();
  return OkStatus();
}

// The number in the process of what `area` shows, or -1.
Result<int> AreaMapper::DescriptorOf(const AreaImage& area) {
  if (area.kind == AreaImage::Kind::kAnonymous) return -1;
  const bool is_object = area.kind == AreaImage::Kind::kSharedAnonymous;
  const AreaImage& last = descriptor_area_;
  const bool same = descriptor_ >= 0 &&
                    is_object == (last.kind == AreaImage::Kind::kSharedAnonymous) &&
                    last.object == area.object && last.open_flags == area.open_flags;
  if (!same) {
    RETURN_IF_ERROR(CloseDescriptor());
    ASSIGN_OR_RETURN(descriptor_, is_object ? SendObject(area) : OpenFileOf(area));
    descriptor_area_ = area;
  }
  return descriptor_;
}

Result<int> AreaMapper::SendObject(const AreaImage& area) {
  if (!channel_) {
    ASSIGN_OR_RETURN(channel_, FdChannel::Open(*process_.remote, process_.pidfd.get()));
  }
  const int fd = objects_.at(area.object).fd.get();
  ASSIGN_OR_RETURN(const std::vector<int> numbers,
                   channel_->Send(*process_.remote, std::span(&fd, 1)));
  return numbers.front();
}

Result<int> AreaMapper::OpenFileOf(const AreaImage& area) {
  if (area.object > std::numeric_limits<std::uint32_t>::max()) {
    return InvalidArgument("file " + std::to_string(area.object) + " is no file's id");
  }
  return open_file_(static_cast<std::uint32_t>(area.object), area.open_flags);
}

Status AreaMapper::CloseDescriptor() {
  if (descriptor_ < 0) return OkStatus();
  return process_.remote->Call("close", SYS_close, std::exchange(descriptor_, -1)).status();
}

Status FinishAreas(RestoredProcess& process, const MemoryLayout& layout,
                   std::vector<std::string>& notes) {
  for (const AddressRange& guard : layout.guards) RETURN_IF_ERROR(InstallGuard(process, guard));
  std::uint64_t unlocked = 0;
  for (const AreaImage& area : layout.areas) {
    if (!area.locked) continue;
    const Status status = Lock(process, area.range);
    const int error = ErrnoOf(status);
    // Over RLIMIT_MEMLOCK without CAP_IPC_LOCK. The program works the same, only not as swiftly.
    if (error == EPERM || error == ENOMEM || error == EAGAIN) {
      unlocked += area.range.size();
      continue;
    }
    RETURN_IF_ERROR(Annotate(status, ToText(area.range)));
  }
  if (unlocked > 0) {
    notes.push_back("pid " + std::to_string(process.image->pid()) + ": " +
                    std::to_string(unlocked) +
                    " bytes are not locked in memory any more, since the container's limit "
                    "(RLIMIT_MEMLOCK) is lower");
  }
  return OkStatus();
}

}  // namespace stasis::engine
