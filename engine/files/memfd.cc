// memfd_create(2): files of the kernel's own tmpfs, behind links like "/memfd:name (deleted)". And anonymous
// shared memory that is open as a file, by /proc/PID/map_files: "/dev/zero (deleted)".
//
// State    name (of the link), size, owner, mode, seals; the content, once for all that have it open
// Image    FD_MEMFD for each open file, a record of "memfd" for each inode, and the pages as those of
//          shared memory: "pagemap-shmem-N". N and the inode's id are the inode's number
// Restore  made and filled by the process under restore; other open files of it by its link in /proc.
//          Seals come last (restore_files.cc), since they forbid to fill and to map
// Rule     What memfd_create(2) returns does not count as open for writing, other open files do: as long
//          as one of those is there, or mapped, the memfd cannot be executed (ETXTBSY). So the first
//          open file that may be the one from memfd_create(2) is it again, and what is mapped for
//          writing maps that one
// Rule     One of huge pages (MFD_HUGETLB) tells their size as its block size (hugetlbfs_getattr()), and all of it
//          counts as data for lseek(2)
// Source   memfd_create(2), fcntl(2) F_ADD_SEALS, mm/memfd.c, fs/hugetlbfs/inode.c; tested on 6.18
#include "engine/files/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/kept_files.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/memory/restore_layout.h"

namespace stasis::engine {
namespace {

constexpr std::string_view kPrefix = "/memfd:";
constexpr std::string_view kDeleted = " (deleted)";

bool Owns(const OpenFile& file) {
  return (file.link.starts_with(kPrefix) || IsZeroFile(file.link)) && file.st.st_nlink == 0 &&
         S_ISREG(file.st.st_mode) && (file.flags & O_PATH) == 0;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry entry = NewEntry(file, image::FD_MEMFD);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_memfd()));
  entry.mutable_memfd()->set_pos(file.pos);
  entry.mutable_memfd()->set_inode_id(static_cast<std::uint32_t>(file.st.st_ino));
  ASSIGN_OR_RETURN(const bool is_new, context.SaveMemoryFile(file.st.st_ino, file.borrowed.get()));
  if (!is_new) return entry;

  const int seals = ::fcntl(file.borrowed.get(), F_GET_SEALS);
  if (seals < 0) {
    return SyscallError(errno, "F_GET_SEALS " + NameOf(file));
  }
  std::string_view name = file.link;
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  if (name.ends_with(kDeleted)) name.remove_suffix(kDeleted.size());
  if (name == kZeroFile && !IsZeroFile(file.link)) {
    return Unimplemented(NameOf(file) + ": a memfd with the name of what is no memfd");
  }
  image::MemfdInodeEntry inode;
  inode.set_name(std::string(name));
  inode.set_uid(file.st.st_uid);
  inode.set_gid(file.st.st_gid);
  inode.set_size(static_cast<std::uint64_t>(file.st.st_size));
  inode.set_shmid(static_cast<std::uint32_t>(file.st.st_ino));
  inode.set_seals(static_cast<std::uint32_t>(seals));
  inode.set_inode_id(file.st.st_ino);
  inode.set_mode(file.st.st_mode);
  if (file.fs_magic == HUGETLBFS_MAGIC) {
    const auto shift = std::countr_zero(static_cast<std::uint64_t>(file.st.st_blksize));
    inode.set_hugetlb_flag(MFD_HUGETLB | static_cast<std::uint32_t>(shift) << MAP_HUGE_SHIFT);
  }
  context.AddRecord("memfd", inode.SerializeAsString(), "");
  return entry;
}

// Owner and mode. Never set-user-ID bits: the owner is set with our rights.
Status SetAttributes(int fd, const image::MemfdInodeEntry& inode, const UserIds& ids) {
  RETURN_IF_ERROR(Annotate(ChangeOwner(fd, inode.uid(), inode.gid(), ids), "a memfd"));
  if (inode.has_mode() && ::fchmod(fd, inode.mode() & 0777) != 0) {
    return SyscallError(errno, "set the mode of a memfd");
  }
  return OkStatus();
}

Result<UniqueFd> Make(const image::MemfdInodeEntry& inode, FileRestoreContext& context) {
  const unsigned huge =
      inode.hugetlb_flag() & (MFD_HUGETLB | std::uint32_t{MAP_HUGE_MASK} << MAP_HUGE_SHIFT);
  const bool zero = inode.name() == kZeroFile;
  // One that allows no seals has just that one; the others get theirs in the end.
  const unsigned flags = (inode.seals() == F_SEAL_SEAL ? 0 : MFD_ALLOW_SEALING) | huge;
  ASSIGN_OR_RETURN(UniqueFd fd, zero ? context.actor().SharedMemory(inode.size(), inode.shmid(),
                                                                    context.source())
                                     : context.actor().MemoryFile(inode.name(), flags, inode.size(),
                                                                  inode.shmid(), context.source()));
  RETURN_IF_ERROR(SetAttributes(fd.get(), inode, context.ids()));
  return fd;
}

// What memfd_create(2) gave is kept from here on.
Status KeepMade(std::uint32_t inode_id, FileRestoreContext& context) {
  const std::string key = KeptKey("memfd", inode_id);
  if (IsKept(key, context)) return OkStatus();
  ASSIGN_OR_RETURN(const auto records, context.Records("memfd"));
  ASSIGN_OR_RETURN(const image::MemfdInodeEntry inode, FindMemfd(records, inode_id));
  ASSIGN_OR_RETURN(UniqueFd made, Make(inode, context));
  context.Kept()[key] = std::move(made);
  return OkStatus();
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_memfd()) return DataLoss("no memfd in the entry");
  const image::MemfdFileEntry& memfd = entry.memfd();
  const std::string key = KeptKey("memfd", memfd.inode_id());
  RETURN_IF_ERROR(KeepMade(memfd.inode_id(), context));
  UniqueFd fd;
  const bool may_be_first = (OpenFlags(memfd.flags()) & (O_ACCMODE | O_PATH)) == O_RDWR;
  if (may_be_first && context.Kept().contains(key)) {
    ASSIGN_OR_RETURN(fd, GiveKept(key, entry.id(), context));
  } else {
    ASSIGN_OR_RETURN(fd, Reopen(KeptFd(key, context), OpenFlags(memfd.flags())));
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), memfd.flags()));
  if (memfd.pos() != 0 && ::lseek(fd.get(), static_cast<off_t>(memfd.pos()), SEEK_SET) < 0) {
    return SyscallError(errno, "lseek a memfd to " + std::to_string(memfd.pos()));
  }
  return fd;
}

}  // namespace

Result<image::MemfdInodeEntry> FindMemfd(std::span<const FileRestoreContext::Record> records,
                                         std::uint64_t inode_id) {
  for (const FileRestoreContext::Record& record : records) {
    image::MemfdInodeEntry inode;
    if (!inode.ParsePartialFromString(record.message) || !inode.IsInitialized()) {
      return DataLoss("memfd: a record does not parse");
    }
    if (inode.inode_id() == inode_id) return inode;
  }
  return DataLoss("memfd " + std::to_string(inode_id) + " is not in the images");
}

Result<UniqueFd> RestoreMappedMemfd(const image::MemfdFileEntry& memfd,
                                    FileRestoreContext& context) {
  RETURN_IF_ERROR(KeepMade(memfd.inode_id(), context));
  return Duplicate(KeptFd(KeptKey("memfd", memfd.inode_id()), context));
}

Status SealMemfd(int fd, std::uint32_t seals) {
  if (seals == 0 || seals == F_SEAL_SEAL) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd writable, Reopen(fd, O_RDWR));
  const int now = ::fcntl(writable.get(), F_GET_SEALS);
  if (now >= 0 && static_cast<std::uint32_t>(now) == seals) return OkStatus();
  if (::fcntl(writable.get(), F_ADD_SEALS, seals) != 0) {
    return SyscallError(errno, "seal a memfd");
  }
  return OkStatus();
}

const FileKind kMemfd = {
    .name = "memfd", .owns = Owns, .dump = Dump, .type = image::FD_MEMFD, .restore = Restore};

}  // namespace stasis::engine
