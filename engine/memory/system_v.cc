// State    id, key, size, owner and mode by shmctl(2) IPC_STAT; content as that of shared memory
// Image    "ipcns-shm-N" for the IPC namespace N, pages in "pagemap-shmem-ID"
// Rule     An id is chosen by /proc/sys/kernel/shm_next_id for the next segment of the namespace
//          (CONFIG_CHECKPOINT_RESTORE); the sysctl is that of the namespace of who opens it
// Rule     IPC_RMID leaves the segment to those that are attached (SHM_DEST), without its key
// Lost     the creator's ids (cuid, cgid); times. Segments that nobody is attached to, semaphores and
//          message queues are not looked at: they are the namespace's, which a pod's containers share
// Source   shmget(2), shmop(2), shmctl(2), setns(2), ipc/util.c ipc_idr_alloc(); tested on 6.18
#include "engine/memory/system_v.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <cerrno>
#include <span>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_file.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {
namespace {

constexpr int kAttempts = 8;

std::string Name(std::uint64_t id) { return "System V segment " + std::to_string(id); }

// Runs `step` in the IPC namespace of `pid`.
Status InIpcNamespace(pid_t pid, const std::function<Status()>& step) {
  ASSIGN_OR_RETURN(const UniqueFd ns,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/ipc", O_RDONLY));
  return InNamespace(ns.get(), CLONE_NEWIPC, step);
}

Result<shmid_ds> Stat(int id) {
  shmid_ds segment = {};
  if (::shmctl(id, IPC_STAT, &segment) != 0) {
    // EINVAL: no such id; EIDRM: its number is another's.
    if (errno == EINVAL || errno == EIDRM) return NotFound(Name(static_cast<unsigned>(id)));
    return SyscallError(errno, "shmctl IPC_STAT");
  }
  return segment;
}

Status ChooseNextId(pid_t pid, int id) {
  return InIpcNamespace(pid, [id]() -> Status {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(AT_FDCWD, "/proc/sys/kernel/shm_next_id", O_WRONLY));
    return WriteAll(fd.get(), std::to_string(id));
  });
}

}  // namespace

Result<image::IpcShmEntry> ReadSegment(pid_t pid, int id) {
  shmid_ds segment = {};
  RETURN_IF_ERROR(InIpcNamespace(pid, [&]() -> Status {
    ASSIGN_OR_RETURN(segment, Stat(id));
    return OkStatus();
  }));
  image::IpcShmEntry entry;
  image::IpcDescEntry& description = *entry.mutable_desc();
  description.set_key(static_cast<std::uint32_t>(segment.shm_perm.__key));
  description.set_uid(segment.shm_perm.uid);
  description.set_gid(segment.shm_perm.gid);
  description.set_cuid(segment.shm_perm.cuid);
  description.set_cgid(segment.shm_perm.cgid);
  description.set_mode(segment.shm_perm.mode & (0777u | SHM_DEST));
  description.set_id(static_cast<std::uint32_t>(id));
  entry.set_size(segment.shm_segsz);
  entry.set_in_pagemaps(true);
  return entry;
}

Result<SegmentRestorer> SegmentRestorer::Create(const std::vector<image::IpcShmEntry>& segments) {
  SegmentRestorer restorer;
  for (const image::IpcShmEntry& entry : segments) {
    if (entry.hugetlb_flag() != 0) return Unimplemented(Name(entry.desc().id()) + ": huge pages");
    if (!restorer.segments_.try_emplace(entry.desc().id(), Segment{.entry = entry}).second) {
      return InvalidArgument(Name(entry.desc().id()) + " comes twice");
    }
  }
  return restorer;
}

Status SegmentRestorer::Make(RestoredProcess& process, std::uint64_t id, const ImageSource& source,
                             const std::function<void(std::uint64_t)>& on_pages) {
  const auto found = segments_.find(id);
  if (found == segments_.end()) return DataLoss(Name(id) + " is not in the images");
  if (found->second.made) return OkStatus();
  const image::IpcShmEntry& entry = found->second.entry;
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
    found->second.made = true;
    if (there.shm_nattch > 0) return OkStatus();
    return Fill(process, found->second, source, on_pages);
  }
  if (known.code() != StatusCode::kNotFound) return known;

  RemoteSyscalls& remote = *process.remote;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    RETURN_IF_ERROR(ChooseNextId(process.pid, number));
    const Result<std::uint64_t> made =
        remote.Call("shmget", SYS_shmget, key, entry.size(), IPC_CREAT | IPC_EXCL | 0600);
    if (ErrnoOf(made.status()) == EEXIST) {
      return AlreadyExists(Name(id) +
                           ": its key belongs to another segment here; remove that (ipcrm), "
                           "or restore in an IPC namespace of its own");
    }
    RETURN_IF_ERROR(made.status());
    if (*made == id) {
      found->second.made = true;
      return Fill(process, found->second, source, on_pages);
    }
    // Somebody else of the namespace was given the id that we had chosen.
    RETURN_IF_ERROR(remote.Call("shmctl IPC_RMID", SYS_shmctl, *made, IPC_RMID, 0).status());
  }
  return AlreadyExists(Name(id) + ": its id was taken by another segment again and again");
}

Status SegmentRestorer::Fill(RestoredProcess& process, const Segment& segment,
                             const ImageSource& source,
                             const std::function<void(std::uint64_t)>& on_pages) const {
  const std::uint64_t id = segment.entry.desc().id();
  ASSIGN_OR_RETURN(const PageSet pages, ReadPageSet(source, ImageName("pagemap-shmem", id)));
  const std::uint64_t size = (segment.entry.size() + kPageBytes - 1) & ~(kPageBytes - 1);
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
  const std::uint64_t size = (found->second.entry.size() + kPageBytes - 1) & ~(kPageBytes - 1);
  if (area.offset != 0 || area.range.size() != size) {
    return Unimplemented(Name(area.object) + ": a part of it cannot be restored alone");
  }
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

Status SegmentRestorer::Finish(pid_t pid) const {
  if (segments_.empty()) return OkStatus();
  return InIpcNamespace(pid, [this]() -> Status {
    for (const auto& [id, segment] : segments_) {
      if (!segment.made) continue;
      const auto number = static_cast<int>(id);
      const image::IpcDescEntry& description = segment.entry.desc();
      shmid_ds wanted = {};
      wanted.shm_perm.uid = description.uid();
      wanted.shm_perm.gid = description.gid();
      wanted.shm_perm.mode = static_cast<unsigned short>(description.mode() & 0777);
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
