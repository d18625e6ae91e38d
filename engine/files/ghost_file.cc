// Files that are open and have no path any more: deleted, replaced by rename(2), or O_TMPFILE. Regular
// files, folders, FIFOs, symbolic links and harmless devices.
//
// State    owner, mode, times; content with its holes, where a symbolic link leads to
// Image    "ghost-file-N": an entry, then runs of content each with its place; "remap-fpath" joins
//          it to the files. N is the lowest file id of those that share the inode. An inode that has
//          another path gets a new one instead (kept_links.h), if the tree does not run on
// Dump     read through a descriptor of our own: lseek(2) SEEK_DATA on the borrowed one would move
//          the offset that it shares with its holder
// Restore  made at its path when that is free, else beside it, and unlinked once it was opened by the other names
//          that it had (ghost_names.h); others that had it open are opened again through ours
// Source   lseek(2), proc_pid_fd(5); tested on 6.18 with ext4, tmpfs and overlayfs
#include "engine/files/ghost_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <limits>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/ghost_names.h"
#include "engine/files/kept_links.h"
#include "engine/files/path.h"
#include "engine/image/image_file.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kBlockBytes = 512;  // of st_blocks, stat(2)

constexpr int kAnyMount = -2;  // of RemapKey: a copy is one for all

std::string GhostImage(std::uint32_t number) {
  const std::string name = ImageName("ghost-file", number);
  return name.substr(0, name.size() - std::string_view(".img").size());
}

// A file of a mount that its path does not lead to (lazily unmounted, covered, or the kernel's own) would
// come back in another file system.
Status CheckMount(const OpenFile& file, const std::string& path, const FileDumpContext& context) {
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(file.fdinfo));
  std::string folder = path;
  struct statx found = {};
  int failed = -1;
  while (failed != 0 && !folder.empty()) {  // folders may be gone too
    folder.resize(folder.rfind('/'));
    const std::string below = "." + folder;
    failed =
        ::statx(context.RootOf(file), below.c_str(), AT_SYMLINK_NOFOLLOW, STATX_MNT_ID, &found);
  }
  const bool same = failed == 0 && (found.stx_mask & STATX_MNT_ID) != 0 &&
                    found.stx_mnt_id == static_cast<std::uint64_t>(info.mnt_id);
  if (same) return OkStatus();
  return Unimplemented(NameOf(file) +
                       ": it is deleted, and on a mount that its path does not lead to");
}

std::uint64_t Limit(const FileDumpContext& context) {
  const std::uint64_t chosen = context.options().ghost_limit;
  return chosen == std::numeric_limits<std::uint64_t>::max() ? kGhostLimitBytes : chosen;
}

Status CheckGhost(const OpenFile& file, const std::string& path, const FileDumpContext& context) {
  const auto bytes = static_cast<std::uint64_t>(file.st.st_blocks) * kBlockBytes;
  if (S_ISREG(file.st.st_mode) && bytes > Limit(context)) {
    return Unimplemented(NameOf(file) + ": a deleted file of " + std::to_string(bytes) +
                         " bytes; the limit is " + std::to_string(Limit(context)));
  }
  if (S_ISSOCK(file.st.st_mode)) {
    return Unimplemented(NameOf(file) + ": a deleted socket's path cannot be checkpointed yet");
  }
  return CheckMount(file, path, context);
}

image::GhostFileEntry GhostEntry(const struct stat& st) {
  image::GhostFileEntry ghost;
  ghost.set_uid(st.st_uid);
  ghost.set_gid(st.st_gid);
  ghost.set_mode(st.st_mode);
  // As the kernel packs it, not as stat(2) does.
  ghost.set_dev(major(st.st_dev) << 20 | minor(st.st_dev));
  ghost.set_ino(st.st_ino);
  ghost.mutable_atim()->set_tv_sec(static_cast<std::uint64_t>(st.st_atim.tv_sec));
  ghost.mutable_atim()->set_tv_usec(static_cast<std::uint64_t>(st.st_atim.tv_nsec / 1000));
  ghost.mutable_mtim()->set_tv_sec(static_cast<std::uint64_t>(st.st_mtim.tv_sec));
  ghost.mutable_mtim()->set_tv_usec(static_cast<std::uint64_t>(st.st_mtim.tv_nsec / 1000));
  if (S_ISREG(st.st_mode)) {
    ghost.set_chunks(true);
    ghost.set_size(static_cast<std::uint64_t>(st.st_size));
  }
  if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
    ghost.set_rdev(major(st.st_rdev) << 20 | minor(st.st_rdev));
  }
  return ghost;
}

// Adds every run of data of `fd`, at most the limit in all: the file may have grown since its size
// was looked at only by a process outside the tree.
Status DumpContent(const OpenFile& file, int fd, const std::string& image_name,
                   FileDumpContext& context) {
  off_t end = 0;
  std::uint64_t total = 0;
  while (true) {
    const off_t start = ::lseek(fd, end, SEEK_DATA);
    if (start < 0 && errno == ENXIO) return OkStatus();  // only a hole is left
    if (start < 0) {
      return SyscallError(errno, "SEEK_DATA " + NameOf(file));
    }
    end = ::lseek(fd, start, SEEK_HOLE);
    if (end < 0) {
      return SyscallError(errno, "SEEK_HOLE " + NameOf(file));
    }
    const auto length = static_cast<std::uint64_t>(end - start);
    total += length;
    if (total > Limit(context)) {
      return Unimplemented(NameOf(file) + ": a deleted file of more than " +
                           std::to_string(Limit(context)) + " bytes");
    }
    std::string content(length, '\0');
    const auto bytes = std::as_writable_bytes(std::span(content.data(), content.size()));
    RETURN_IF_ERROR(
        Annotate(ReadExactAt(fd, bytes, static_cast<std::uint64_t>(start)), NameOf(file)));
    image::GhostChunkEntry chunk;
    chunk.set_off(static_cast<std::uint64_t>(start));
    chunk.set_len(length);
    context.AddRecord(image_name, chunk.SerializeAsString(), std::move(content));
  }
}

// ---- restore ----

Status WriteAt(int fd, std::string_view bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "write a deleted file");
    }
    bytes.remove_prefix(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return OkStatus();
}

Status FillGhost(int fd, const image::GhostFileEntry& ghost, ImageFileReader& reader) {
  if (!ghost.chunks()) return WriteAt(fd, reader.Rest(), 0);
  while (!reader.AtEnd()) {
    image::GhostChunkEntry chunk;
    RETURN_IF_ERROR(reader.Record(chunk));
    ASSIGN_OR_RETURN(const std::string_view bytes, reader.Raw(chunk.len()));
    RETURN_IF_ERROR(WriteAt(fd, bytes, chunk.off()));
  }
  if (::ftruncate(fd, static_cast<off_t>(ghost.size())) != 0) {
    return SyscallError(errno, "set the size of a deleted file");
  }
  return OkStatus();
}

// A deleted file while it still has a path.
class Ghost {
 public:
  Ghost(const image::GhostFileEntry& entry, FileRestoreContext& context)
      : entry_(entry), actor_(context.actor()), ids_(context.ids()), folders_(actor_) {}
  Ghost(const Ghost&) = delete;
  Ghost& operator=(const Ghost&) = delete;
  ~Ghost() { (void)Unlink(); }  // already reporting worse

  int fd() const { return fd_.get(); }

  /// At `path` if nobody has that, else beside it.
  Status Make(const std::string& path, std::uint32_t number) {
    RETURN_IF_ERROR(CheckType());
    RETURN_IF_ERROR(folders_.Make(path));
    Status status = MakeAt(path);
    if (ErrnoOf(status) == EEXIST) {
      status = MakeAt(path + ".stasis-" + std::to_string(number) + ".ghost");
    }
    return status;
  }

  // Owner, mode and times. A program that an archive brings must not run with an identity of the archive's
  // choice, and the owner is set with our rights: set-user-ID bits only as far as the process under restore
  // may set them itself.
  Status SetAttributes() {
    RETURN_IF_ERROR(
        Annotate(ChangeOwner(fd(), entry_.uid(), entry_.gid(), ids_), "a deleted file"));
    if (S_ISLNK(entry_.mode())) return OkStatus();
    const std::string link = "/proc/self/fd/" + std::to_string(fd());
    if (::chmod(link.c_str(), entry_.mode() & 01777) != 0) {
      return SyscallError(errno, "set the mode of a deleted file");
    }
    if ((entry_.mode() & 06000) != 0) {
      (void)actor_.SetMode(path_, entry_.mode() & 07777);  // or not
    }
    if (!entry_.has_atim() || !entry_.has_mtim()) return OkStatus();
    const std::array<timespec, 2> times = {TimeOf(entry_.atim()), TimeOf(entry_.mtim())};
    if (::utimensat(AT_FDCWD, link.c_str(), times.data(), 0) != 0) {
      return SyscallError(errno, "set the times of a deleted file");
    }
    return OkStatus();
  }

  Result<UniqueFd> Finish() {
    RETURN_IF_ERROR(Unlink());
    RETURN_IF_ERROR(folders_.Remove());
    return std::move(fd_);
  }

 private:
  // We open a node again with our own rights: an archive gets no device but those that do no harm.
  Status CheckType() const {
    const bool device = S_ISCHR(entry_.mode()) || S_ISBLK(entry_.mode());
    if (!S_ISSOCK(entry_.mode()) && (!device || IsHarmlessDevice(entry_.mode(), Device()))) {
      return OkStatus();
    }
    return Unimplemented("a deleted file of this type (mode " + std::to_string(entry_.mode()) +
                         ") cannot be restored");
  }
  dev_t Device() const { return makedev(entry_.rdev() >> 20, entry_.rdev() & 0xfffff); }

  Status MakeAt(const std::string& path) {
    const unsigned type = entry_.mode() & S_IFMT;
    if (type == S_IFREG) {
      ASSIGN_OR_RETURN(fd_, actor_.Open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
      path_ = path;
      return OkStatus();
    }
    RETURN_IF_ERROR(type == S_IFLNK ? actor_.MakeSymlink(entry_.symlnk_target(), path)
                                    : actor_.MakeNode(path, type | 0700, Device()));
    path_ = path;
    ASSIGN_OR_RETURN(fd_, actor_.Open(path, O_PATH | O_NOFOLLOW, 0));
    struct stat st = {};
    if (::fstat(fd(), &st) != 0 || (st.st_mode & S_IFMT) != type) {
      return FailedPrecondition(path + ": somebody else takes this path");
    }
    return OkStatus();
  }

  Status Unlink() {
    if (path_.empty()) return OkStatus();
    const std::string path = std::exchange(path_, "");
    return S_ISDIR(entry_.mode()) ? actor_.RemoveFolder(path) : actor_.Unlink(path);
  }

  static timespec TimeOf(const image::Timeval& time) {
    return {.tv_sec = static_cast<time_t>(time.tv_sec()),
            .tv_nsec = static_cast<long>(time.tv_usec() % 1'000'000 * 1000)};
  }

  const image::GhostFileEntry& entry_;
  FileActor& actor_;
  const UserIds& ids_;
  GoneFolders folders_;
  std::string path_;  // where it is, until it is unlinked
  UniqueFd fd_;       // O_PATH, but for regular files
};

Result<UniqueFd> MakeGhost(const image::RegFileEntry& reg, std::uint32_t number,
                           FileRestoreContext& context) {
  const std::string& path = reg.name();
  if (!path.starts_with('/')) {
    return InvalidArgument("the path \"" + path + "\" is not absolute");
  }
  const std::string name = ImageName("ghost-file", number);
  ASSIGN_OR_RETURN(ImageFileReader reader,
                   ImageFileReader::Open(context.source(), name, "ghost-file"));
  image::GhostFileEntry entry;
  RETURN_IF_ERROR(reader.Record(entry));
  Ghost ghost(entry, context);
  RETURN_IF_ERROR(Annotate(ghost.Make(path, number), "make deleted file " + path + " again"));
  if (S_ISREG(entry.mode())) RETURN_IF_ERROR(FillGhost(ghost.fd(), entry, reader));
  RETURN_IF_ERROR(ghost.SetAttributes());
  RETURN_IF_ERROR(KeepOtherNames(ghost.fd(), number, reg, context));
  return ghost.Finish();
}

Result<UniqueFd> OpenLink(const image::RegFileEntry& reg, std::uint32_t link_id,
                          FileRestoreContext& context) {
  const image::FileEntry* const link = context.Entry(image::FD_REG, link_id);
  if (link == nullptr || !link->has_reg()) return DataLoss("no link for a file without a name");
  RETURN_IF_ERROR(context.EnterMount(link->reg().mnt_id()));
  image::RegFileEntry found = reg;
  found.set_name(link->reg().name());
  return OpenRegEntry(found, context);
}

// A hard link that is made when the checkpoint is whole; false when there can be none.
Result<bool> PlanLink(const OpenFile& file, const std::string& path,
                      image::RemapFilePathEntry& remap, FileDumpContext& context) {
  if (!S_ISREG(file.st.st_mode) || file.st.st_nlink == 0) return false;
  Result<std::string> name = Unimplemented("the tree runs on");
  if (context.kept_links() != nullptr) {
    name = context.kept_links()->Plan(context.RootOf(file), path, file.borrowed.get());
  }
  if (!name.ok()) {
    context.Note(NameOf(file) +
                 ": this path is gone but the file has others; a restore makes a copy");
    return false;
  }
  image::FileEntry link;
  link.set_type(image::FD_REG);
  link.set_id(context.NewFileId());
  ASSIGN_OR_RETURN(*link.mutable_reg(), DumpRegEntry(file, link.id(), *name, context));
  remap.set_remap_id(link.id());
  remap.set_remap_type(image::REMAP_LINKED);
  context.AddEntry(std::move(link));
  return true;
}

Status SaveGhost(const OpenFile& file, const std::string& path, FileDumpContext& context) {
  RETURN_IF_ERROR(CheckGhost(file, path, context));
  const std::string image_name = GhostImage(file.id);
  image::GhostFileEntry entry = GhostEntry(file.st);
  if (S_ISLNK(file.st.st_mode)) {
    ASSIGN_OR_RETURN(*entry.mutable_symlnk_target(), ReadLinkAt(file.borrowed.get(), ""));
  }
  context.AddRecord(image_name, entry.SerializeAsString(), "");
  if (!S_ISREG(file.st.st_mode)) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd fd, Reopen(file.borrowed.get(), O_RDONLY));
  return DumpContent(file, fd.get(), image_name, context);
}

// A file of a process that is dead and waited for: it answers ESRCH to nearly everything. A restore opens it
// while a stand-in has that pid, which has ended and is not waited for yet: only these can be opened then.
Status DumpOfDead(const OpenFile& file, std::uint32_t id, std::string_view path,
                  FileDumpContext& context) {
  constexpr std::string_view kProc = "/proc/";
  constexpr std::string_view kOfEnded[] = {"",        "/stat",   "/status", "/statm",
                                           "/maps",   "/smaps",  "/comm",   "/cmdline",
                                           "/limits", "/cgroup", "/fd"};
  pid_t pid = 0;
  std::string_view rest = path;
  if (rest.starts_with(kProc)) {
    rest.remove_prefix(kProc.size());
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), pid);
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  }
  const bool writes = (file.flags & O_ACCMODE) != O_RDONLY;
  if (pid <= 0 || writes || std::ranges::find(kOfEnded, rest) == std::end(kOfEnded)) {
    return Unimplemented(NameOf(file) + ": what it is of is gone, and cannot be opened again");
  }
  if (context.IsOfTree(pid)) {
    return Unimplemented(NameOf(file) +
                         ": the process that it is of is gone, and its pid is in use");
  }
  image::RemapFilePathEntry remap;
  remap.set_orig_id(id);
  remap.set_remap_id(static_cast<std::uint32_t>(pid));
  remap.set_remap_type(image::REMAP_PROCFS);
  context.AddRecord("remap-fpath", remap.SerializeAsString(), "");
  return OkStatus();
}

}  // namespace

bool IsHarmlessDevice(mode_t mode, dev_t device) {
  // /dev/autofs, through which autofs mounts are looked for: nothing is kept of who opened it.
  if (S_ISCHR(mode) && device == makedev(10, 235)) return true;
  if (!S_ISCHR(mode) || major(device) != 1) return false;
  switch (minor(device)) {
    case 3:
    case 5:
    case 7:
    case 8:
    case 9:
      return true;
    default:
      return false;
  }
}

Status DumpGhost(const OpenFile& file, std::uint32_t id, const std::string& path,
                 FileDumpContext& context) {
  if (file.fs_magic == PROC_SUPER_MAGIC) return DumpOfDead(file, id, path, context);
  auto& remaps = context.Remaps();
  const FileDumpContext::RemapKey ghost = {file.st.st_dev, file.st.st_ino, kAnyMount};
  const FileDumpContext::RemapKey here = {file.st.st_dev, file.st.st_ino,
                                          context.OtherMountOf(file)};
  const bool is_new = !remaps.contains(ghost) && !remaps.contains(here);
  image::RemapFilePathEntry remap = remaps.contains(ghost) ? remaps[ghost] : remaps[here];
  if (is_new) {
    ASSIGN_OR_RETURN(const bool linked, PlanLink(file, path, remap, context));
    if (!linked) {
      RETURN_IF_ERROR(SaveGhost(file, path, context));
      remap.set_remap_id(file.id);
      remap.set_remap_type(image::REMAP_GHOST);
      remaps.erase(here);
    }
    remaps[linked ? here : ghost] = remap;
  }
  remap.set_orig_id(id);
  context.AddRecord("remap-fpath", remap.SerializeAsString(), "");
  return OkStatus();
}

Result<std::optional<image::RemapFilePathEntry>> RemapOf(std::uint32_t id,
                                                         FileRestoreContext& context) {
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records("remap-fpath"));
  for (const Record& record : records) {
    image::RemapFilePathEntry remap;
    if (!remap.ParsePartialFromString(record.message) || !remap.IsInitialized()) {
      return DataLoss("remap-fpath: a record does not parse");
    }
    if (remap.orig_id() == id) return remap;
  }
  return std::nullopt;
}

Result<int> KeepGhost(const image::RegFileEntry& reg, std::uint32_t number,
                      FileRestoreContext& context) {
  const std::string key = KeptKey("ghost", number);
  if (!context.Kept().contains(key)) {
    ASSIGN_OR_RETURN(UniqueFd made, MakeGhost(reg, number, context));
    context.Kept()[key] = std::move(made);
  }
  if (const int other = GhostAs(reg, number, context); other >= 0) return other;
  return context.Kept()[key].get();
}

Result<UniqueFd> RestoreRemapped(const image::RegFileEntry& reg,
                                 const image::RemapFilePathEntry& remap,
                                 FileRestoreContext& context) {
  if (remap.remap_type() == image::REMAP_LINKED) return OpenLink(reg, remap.remap_id(), context);
  if (remap.remap_type() == image::REMAP_PROCFS) {
    RETURN_IF_ERROR(
        Annotate(context.MakeDead(static_cast<pid_t>(remap.remap_id())), "open " + reg.name()));
    return OpenRegEntry(reg, context);
  }
  if (remap.remap_type() != image::REMAP_GHOST) {
    return Unimplemented(reg.name() + " is kept in an unknown way");
  }
  ASSIGN_OR_RETURN(const int ghost, KeepGhost(reg, remap.remap_id(), context));
  // The link in /proc of a symbolic link leads to that one, but O_NOFOLLOW would stop before.
  if (S_ISLNK(reg.mode()) && (reg.flags() & O_PATH) != 0) return Duplicate(ghost);
  const int flags = OpenFlags(reg.flags()) & ~(O_NOFOLLOW | O_DIRECTORY);
  ASSIGN_OR_RETURN(UniqueFd fd, Reopen(ghost, flags | O_NONBLOCK | O_NOCTTY));
  RETURN_IF_ERROR(CheckRegEntry(fd.get(), reg));
  RETURN_IF_ERROR(SetRegState(fd.get(), reg));
  return fd;
}

}  // namespace stasis::engine
