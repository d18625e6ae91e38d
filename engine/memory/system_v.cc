// State    id, key, size, owner and mode by shmctl(2) IPC_STAT; content as that of shared memory
// Image    "ipcns-shm-N" for the IPC namespace N, pages in "pagemap-shmem-ID"
// Rule     IPC_RMID leaves the segment to those that are attached (SHM_DEST), without its key
// Rule     A segment of huge pages is mapped to the end of its last one
// Rule     What was attached by one shmat(2) has one struct file, by which shmdt(2) finds all that is left of it
//          (ksys_shmdt() in ipc/shm.c). A part is moved out of such a mapping (mremap(2)), which keeps that
// Lost     the creator's ids (cuid, cgid); times
// Source   shmget(2), shmop(2), shmctl(2), setns(2), tested on 6.18
#include "engine/memory/system_v.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_file.h"
#include "engine/ipc/ipc_namespace.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {
namespace {

std::string Name(std::uint64_t id) { return "System V segment " + std::to_string(id); }

Result<shmid_ds> Stat(int id) {
  shmid_ds segment = {};
  if (::shmctl(id, IPC_STAT, &segment) != 0) {
    // EINVAL: no such id; EIDRM: its number is another's.
    if (errno == EINVAL || errno == EIDRM) return NotFound(Name(static_cast<unsigned>(id)));
    return SyscallError(errno, "shmctl IPC_STAT");
  }
  return segment;
}

constexpr std::uint32_t kHugeShiftMask = 0x3f;  // linux/shm.h
constexpr int kHugeShift = 26;

// Of a flag that shmget(2) takes; 0: no power of two that any kernel has.
std::uint64_t PageBytesOf(std::uint32_t hugetlb_flag) {
  if (hugetlb_flag == 0) return kPageBytes;
  const std::uint32_t shift = hugetlb_flag >> kHugeShift & kHugeShiftMask;
  const bool is_known = (hugetlb_flag & ~(kHugeShiftMask << kHugeShift)) == SHM_HUGETLB;
  return is_known && shift > 12 && shift < 40 ? std::uint64_t{1} << shift : 0;
}

std::uint64_t RoundUp(std::uint64_t size, std::uint64_t page) {
  return (size + page - 1) & ~(page - 1);
}

std::uint64_t MappedBytes(const image::IpcShmEntry& entry) {
  return RoundUp(entry.size(), PageBytesOf(entry.hugetlb_flag()));
}

// The mapping at `start` of a segment of `size` bytes, whatever its pages are.
Result<UniqueFd> OpenMapping(std::uint64_t start, std::uint64_t size) {
  Result<UniqueFd> fd = NotFound("a mapping of a segment");
  for (const std::uint64_t page : {kPageBytes, std::uint64_t{1} << 21, std::uint64_t{1} << 30}) {
    const AddressRange range = {start, start + RoundUp(size, page)};
    fd = OpenAt(AT_FDCWD, "/proc/self/map_files/" + ToText(range), O_RDONLY);
    if (fd.ok() || ErrnoOf(fd.status()) != ENOENT) break;
  }
  return fd;
}

}  // namespace

Result<image::IpcShmEntry> ReadSegment(pid_t pid, int id) {
  shmid_ds segment = {};
  RETURN_IF_ERROR(InIpcNamespace(pid, [&]() -> Status {
    ASSIGN_OR_RETURN(segment, Stat(id));
    return OkStatus();
  }));
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::OfPid(pid));
  image::IpcShmEntry entry;
  *entry.mutable_desc() = DescribeObject(segment.shm_perm, id, ids);
  entry.set_size(segment.shm_segsz);
  entry.set_in_pagemaps(true);
  return entry;
}

Result<SegmentUse> ReadSegmentUse(pid_t pid, int id) {
  shmid_ds segment = {};
  RETURN_IF_ERROR(InIpcNamespace(pid, [&]() -> Status {
    ASSIGN_OR_RETURN(segment, Stat(id));
    return OkStatus();
  }));
  return SegmentUse{.mappings = segment.shm_nattch,
                    .last_change = std::max(segment.shm_atime, segment.shm_dtime)};
}

Result<UniqueFd> OpenSegment(pid_t pid, int id) {
  UniqueFd fd;
  RETURN_IF_ERROR(InIpcNamespace(pid, [&]() -> Status {
    ASSIGN_OR_RETURN(const shmid_ds segment, Stat(id));
    void* const at = ::shmat(id, nullptr, SHM_RDONLY);
    if (at == reinterpret_cast<void*>(-1)) return SyscallError(errno, "shmat");
    const auto start = reinterpret_cast<std::uint64_t>(at);
    Result<UniqueFd> opened = OpenMapping(start, segment.shm_segsz);
    ::shmdt(at);
    ASSIGN_OR_RETURN(fd, std::move(opened));
    return OkStatus();
  }));
  return fd;
}

Result<SegmentRestorer> SegmentRestorer::Create(const std::vector<image::IpcShmEntry>& segments) {
  SegmentRestorer restorer;
  for (const image::IpcShmEntry& entry : segments) {
    if (PageBytesOf(entry.hugetlb_flag()) == 0) {
      return Unimplemented(Name(entry.desc().id()) + ": huge pages of an unknown size");
    }
    if (!restorer.segments_.try_emplace(entry.desc().id(), Segment{.entry = entry}).second) {
      return InvalidArgument(Name(entry.desc().id()) + " comes twice");
    }
  }
  return restorer;
}

Status SegmentRestorer::Make(RestoredProcess& process, std::uint64_t id, Segment& segment,
                             const ImageSource& source,
                             const std::function<void(std::uint64_t)>& on_pages) {
  const image::IpcShmEntry& entry = segment.entry;
  const auto number = static_cast<int>(id);
  const auto key = static_cast<key_t>(entry.desc().key());

  shmid_ds there = {};
  const Status known = InIpcNamespace(process.pid, [&]() -> Status {
    ASSIGN_OR_RETURN(there, Stat(number));
    return OkStatus();
  });
  if (known.ok()) {
    // What a tree leaves behind when it is killed.
    if (there.shm_perm.__key != key || there.shm_segsz != entry.size()) {
      return AlreadyExists(Name(id) +
                           " is another one here; remove it (ipcrm), or restore in an IPC "
                           "namespace of its own");
    }
    segment.made = true;
    if (there.shm_nattch > 0) return OkStatus();
    return Fill(process, segment, source, on_pages);
  }
  if (known.code() != StatusCode::kNotFound) return known;

  RemoteSyscalls& remote = *process.remote;
  RETURN_IF_ERROR(MakeWithId(
      process.pid, number,
      {.name = Name(id),
       .next_id = "shm_next_id",
       .make =
           [&] {
             return remote.Call("shmget", SYS_shmget, key, entry.size(),
                                IPC_CREAT | IPC_EXCL | 0600 | entry.hugetlb_flag());
           },
       .remove =
           [&](std::uint64_t other) {
             return remote.Call("shmctl IPC_RMID", SYS_shmctl, other, IPC_RMID, 0).status();
           }}));
  segment.made = true;
  return Fill(process, segment, source, on_pages);
}

Status SegmentRestorer::MakeAll(RestoredProcess& process, const ImageSource& source,
                                const std::function<void(std::uint64_t)>& on_pages) {
  for (auto& [id, segment] : segments_) {
    RETURN_IF_ERROR(Make(process, id, segment, source, on_pages));
  }
  return OkStatus();
}

Status SegmentRestorer::Fill(RestoredProcess& process, const Segment& segment,
                             const ImageSource& source,
                             const std::function<void(std::uint64_t)>& on_pages) const {
  const std::uint64_t id = segment.entry.desc().id();
  ASSIGN_OR_RETURN(const PageSet pages, ReadPageSet(source, ImageName("pagemap-shmem", id)));
  const std::uint64_t size = MappedBytes(segment.entry);
  RemoteSyscalls& remote = *process.remote;
  ASSIGN_OR_RETURN(const std::uint64_t start, remote.Call("shmat", SYS_shmat, id, 0, 0));
  const PageTarget target = {.range = {0, size}, .address = start};
  RETURN_IF_ERROR(CheckPlaces(pages, std::span(&target, 1)));
  ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(process.proc.get(), "mem", O_RDWR));
  RETURN_IF_ERROR(
      WritePages(source, pages, std::span(&target, 1), process.pid, mem.get(), on_pages));
  return remote.Call("shmdt", SYS_shmdt, start).status();
}

Status SegmentRestorer::Attach(RestoredProcess& process, const AreaImage& area) const {
  const auto found = segments_.find(area.object);
  if (found == segments_.end()) return DataLoss(Name(area.object) + " is not in the images");
  const int read_only = area.open_flags == O_RDONLY ? SHM_RDONLY : 0;
  const int attached = PROT_READ | (read_only ? 0 : PROT_WRITE);
  RemoteSyscalls& remote = *process.remote;
  ASSIGN_OR_RETURN(const std::uint64_t start,
                   remote.Call("shmat " + ToText(area.range), SYS_shmat, area.object,
                               area.range.start, read_only));
  if (start != area.range.start) {
    return Internal("shmat " + ToText(area.range) + ": the kernel chose another address");
  }
  if (area.prot == attached) return OkStatus();
  return remote
      .Call("mprotect " + ToText(area.range), SYS_mprotect, start, area.range.size(), area.prot)
      .status();
}

bool SegmentRestorer::IsPart(const AreaImage& area) const {
  const auto found = segments_.find(area.object);
  return found != segments_.end() &&
         (area.offset != 0 || area.range.size() != MappedBytes(found->second.entry));
}

Status SegmentRestorer::AttachParts(RestoredProcess& process,
                                    std::span<const AreaImage> parts) const {
  // By where the first byte of the segment was: what was attached by one call is detached by one.
  std::map<std::tuple<std::uint64_t, std::uint64_t, int>, std::vector<AreaImage>> attachments;
  for (const AreaImage& part : parts) {
    const std::uint64_t size = MappedBytes(segments_.at(part.object).entry);
    if (part.offset > part.range.start || part.range.size() > size ||
        part.offset > size - part.range.size()) {
      return InvalidArgument("memory at " + ToText(part.range) + " is no part of " +
                             Name(part.object));
    }
    // So that the kernel chooses no place that is one of theirs.
    RETURN_IF_ERROR(process.remote
                        ->Call("mmap " + ToText(part.range), SYS_mmap, part.range.start,
                               part.range.size(), PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                               -1, 0)
                        .status());
    attachments[{part.object, part.range.start - part.offset, part.open_flags}].push_back(part);
  }
  for (const auto& [key, together] : attachments) {
    RETURN_IF_ERROR(AttachTogether(process, together));
  }
  return OkStatus();
}

Status SegmentRestorer::AttachTogether(RestoredProcess& process,
                                       std::span<const AreaImage> parts) const {
  const std::uint64_t id = parts.front().object;
  RemoteSyscalls& remote = *process.remote;
  const int read_only = parts.front().open_flags == O_RDONLY ? SHM_RDONLY : 0;
  ASSIGN_OR_RETURN(const std::uint64_t start,
                   remote.Call("shmat " + Name(id), SYS_shmat, id, 0, read_only));
  for (const AreaImage& part : parts) {
    const std::uint64_t size = part.range.size();
    RETURN_IF_ERROR(remote
                        .Call("mremap to " + ToText(part.range), SYS_mremap, start + part.offset,
                              size, size, MREMAP_MAYMOVE | MREMAP_FIXED, part.range.start)
                        .status());
    RETURN_IF_ERROR(
        remote
            .Call("mprotect " + ToText(part.range), SYS_mprotect, part.range.start, size, part.prot)
            .status());
  }
  return remote
      .Call("munmap the rest of " + Name(id), SYS_munmap, start,
            MappedBytes(segments_.at(id).entry))
      .status();
}

Status SegmentRestorer::Finish(pid_t pid) const {
  if (segments_.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::OfPid(pid));
  return InIpcNamespace(pid, [&]() -> Status {
    for (const auto& [id, segment] : segments_) {
      if (!segment.made) continue;
      const auto number = static_cast<int>(id);
      const image::IpcDescEntry& description = segment.entry.desc();
      shmid_ds wanted = {};
      RETURN_IF_ERROR(SetOwner(description, ids, wanted.shm_perm));
      if (::shmctl(number, IPC_SET, &wanted) != 0) {
        return SyscallError(errno, Name(id) + ": shmctl IPC_SET");
      }
      if ((description.mode() & SHM_DEST) == 0) continue;
      if (::shmctl(number, IPC_RMID, nullptr) != 0) {
        return SyscallError(errno, Name(id) + ": shmctl IPC_RMID");
      }
    }
    return OkStatus();
  });
}

}  // namespace stasis::engine
