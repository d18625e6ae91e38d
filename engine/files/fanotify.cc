// fanotify(7): watched inodes, mounts and file systems behind the link "anon_inode:[fanotify]".
//
// State    fdinfo: the flags of fanotify_init(2), of each mark what is marked, masks and flags
// Dump     of an inode a path is looked for (watched_path.h); of a mount its mount point, of a file system one of
//          its mounts
// Image    FD_FANOTIFY; marks of file systems in a field of ours
// Restore  by the tree's root and with its rights, never with ours: a mark of a file system tells of, and opens,
//          what no container sees of it. Marks at the very end: what a restore opens must not be among the events
// Lost     events that nobody has read: the report names them
// Refused  marks that let their program decide what others may open: everybody would wait for a program that
//          stands still, we among them
// Source   fanotify(7), fanotify_init(2), fanotify_mark(2), fs/notify/fdinfo.c, fs/notify/fanotify/; tested on 6.18
// Rule     fdinfo shows FAN_CLOEXEC and FAN_NONBLOCK as they were given, and of a mark's flags
//          FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE and FAN_MARK_IGNORE (fanotify_mark_user_flags())
#include <fcntl.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/watched_path.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {
namespace {

// include/uapi/linux/fanotify.h, as far as glibc 2.36 lacks it.
constexpr unsigned kEvictable = 0x200, kIgnore = 0x400;
constexpr std::uint64_t kPreAccess = 0x100000;  // FAN_PRE_ACCESS, Linux 6.14
constexpr std::uint64_t kPermissions =
    FAN_OPEN_PERM | FAN_ACCESS_PERM | FAN_OPEN_EXEC_PERM | kPreAccess;
constexpr unsigned kKeptFlags = FAN_MARK_IGNORED_SURV_MODIFY | kEvictable | kIgnore;

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[fanotify]"; }

// ---- dump ----

Result<std::vector<Mount>> MountsOf(const OpenFile& file) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/mountinfo"));
  return ParseMountinfo(text);
}

// Does the mount point lead to the mount, or has another one been put over it?
bool IsReached(const OpenFile& file, const Mount& mount, const FileDumpContext& context) {
  const std::string below = mount.mountpoint == "/" ? "." : mount.mountpoint.substr(1);
  const Result<UniqueFd> there = OpenAt(context.RootOf(file), below, O_PATH);
  if (!there.ok()) return false;
  const Result<std::string> text =
      ReadFileAt(AT_FDCWD, "/proc/thread-self/fdinfo/" + std::to_string(there->get()));
  const Result<Fdinfo> info = text.ok() ? ParseFdinfo(*text) : text.status();
  return info.ok() && info->mnt_id == mount.id;
}

// The mount point of what `mark` is on: of a mount, or of one of a file system's.
Result<std::string> MountPoint(const OpenFile& file, const FanotifyMark& mark,
                               const FileDumpContext& context) {
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, MountsOf(file));
  for (const Mount& mount : mounts) {
    const bool is_it = mark.mount ? mount.id == *mark.mount
                                  : (mount.dev_major << 20 | mount.dev_minor) == mark.device;
    if (is_it && IsReached(file, mount, context)) return mount.mountpoint;
  }
  return Unimplemented(NameOf(file) + ": no path leads to " +
                       (mark.mount ? "mount " + std::to_string(*mark.mount)
                                   : "the file system " + std::to_string(mark.device >> 20) + ":" +
                                         std::to_string(mark.device & 0xfffff)) +
                       ", which it watches");
}

image::FanotifyMarkEntry NewMark(const FanotifyMark& mark, std::uint32_t id) {
  image::FanotifyMarkEntry entry;
  entry.set_id(id);
  entry.set_type(image::MARK_MOUNT);
  entry.set_mflags(mark.flags);
  entry.set_mask(mark.mask);
  entry.set_ignored_mask(mark.ignored_mask);
  entry.set_s_dev(mark.device);
  return entry;
}

Status DumpMark(const OpenFile& file, const FanotifyMark& mark, FileDumpContext& context,
                image::FanotifyFileEntry& all) {
  if (((mark.mask | mark.ignored_mask) & kPermissions) != 0) {
    return Unimplemented(NameOf(file) +
                         ": it decides what others may open (FAN_OPEN_PERM and the like), and they "
                         "would wait for it while it stands still");
  }
  image::FanotifyMarkEntry entry = NewMark(mark, file.id);
  if (!mark.mount && !mark.whole_device) {
    ASSIGN_OR_RETURN(std::string path, PathOfWatched(file, mark, context));
    entry.set_type(image::MARK_INODE);
    entry.mutable_ie()->set_i_ino(mark.inode);
    *entry.mutable_ie()->mutable_f_handle() = HandleEntry(mark, std::move(path));
    *all.add_mark() = std::move(entry);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(*entry.mutable_me()->mutable_path(), MountPoint(file, mark, context));
  entry.mutable_me()->set_mnt_id(static_cast<std::uint32_t>(mark.mount.value_or(0)));
  *(mark.mount ? all.add_mark() : all.add_stasis_filesystem()) = std::move(entry);
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const Result<FanotifyInfo> info = ParseFanotify(file.fdinfo);
  if (!info.ok()) return Annotate(info.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_FANOTIFY);
  image::FanotifyFileEntry& all = *entry.mutable_ffy();
  RETURN_IF_ERROR(DumpCommon(file, context, all));
  all.set_faflags(info->flags);
  all.set_evflags(info->event_flags);
  for (const FanotifyMark& mark : info->marks) {
    RETURN_IF_ERROR(DumpMark(file, mark, context, all));
  }
  int waiting = 0;
  if (::ioctl(file.borrowed.get(), FIONREAD, &waiting) != 0) {
    return SyscallError(errno, "FIONREAD " + NameOf(file));
  }
  if (waiting > 0) context.Note(NameOf(file) + ": events that nobody has read will be gone");
  return entry;
}

// ---- restore ----

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_ffy()) return DataLoss("no fanotify in the entry");
  const image::FanotifyFileEntry& all = entry.ffy();
  // FAN_CLOEXEC as it was, for fdinfo to show the same: each descriptor gets its own flag later.
  Result<UniqueFd> fd = context.actor().Fanotify(all.faflags(), all.evflags());
  if (!fd.ok() && ErrnoOf(fd.status()) == EPERM) {
    return FailedPrecondition(
        "the program watched by fanotify, for which it needs CAP_SYS_ADMIN here, too");
  }
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(SetStatusFlags(fd->get(), all.flags()));
  return fd;
}

Status RestoreMark(const image::FanotifyMarkEntry& mark, unsigned what, const std::string& path,
                   int fd, ProcessActor& process) {
  if (!path.starts_with('/')) {
    return Unimplemented(
        "a fanotify mark without a path, by file handle alone (of CRIU without --force-irmap), "
        "cannot be restored yet");
  }
  if (((mark.mask() | mark.ignored_mask()) & kPermissions) != 0) {
    return Unimplemented("a fanotify mark on " + path + " that decides what others may open");
  }
  // A link of /proc leads to what a process of the tree has open.
  if (!IsPathOfHeld(path)) what |= FAN_MARK_DONT_FOLLOW;
  const unsigned kept = mark.mflags() & kKeptFlags;
  if (mark.mask() != 0) {
    RETURN_IF_ERROR(process.AddMark(fd, what | (kept & kEvictable), mark.mask(), path));
  }
  if (mark.ignored_mask() == 0) return OkStatus();
  const unsigned ignored = (kept & kIgnore) != 0 ? 0 : FAN_MARK_IGNORED_MASK;
  return process.AddMark(fd, what | kept | ignored, mark.ignored_mask(), path);
}

Status RestoreMarks(const image::FanotifyFileEntry& all, int fd, ProcessActor& process) {
  // The newest comes first, in fdinfo and for CRIU, too.
  for (auto at = all.mark().rbegin(); at != all.mark().rend(); ++at) {
    const image::FanotifyMarkEntry& mark = *at;
    const bool is_mount = mark.type() == image::MARK_MOUNT;
    RETURN_IF_ERROR(RestoreMark(mark, is_mount ? FAN_MARK_MOUNT : FAN_MARK_INODE,
                                is_mount ? mark.me().path() : mark.ie().f_handle().path(), fd,
                                process));
  }
  for (const image::FanotifyMarkEntry& mark : all.stasis_filesystem()) {
    RETURN_IF_ERROR(RestoreMark(mark, FAN_MARK_FILESYSTEM, mark.me().path(), fd, process));
  }
  return OkStatus();
}

// With the rights of the process, which had them when it made the mark.
Status Finish(const image::FileEntry& entry, int fd, ProcessActor& process) {
  const Status status = RestoreMarks(entry.ffy(), fd, process);
  switch (ErrnoOf(status)) {
    case ENOENT:
    case ENOTDIR:
    case EACCES:
      return FailedPrecondition(Message(status) +
                                ": it was watched at the checkpoint; bring it back");
    case EPERM:
      return FailedPrecondition(Message(status) + ": it needs CAP_SYS_ADMIN, as when it was made");
    default:
      return status;
  }
}

}  // namespace

const FileKind kFanotify = {.name = "fanotify",
                            .owns = Owns,
                            .dump = Dump,
                            .type = image::FD_FANOTIFY,
                            .restore = Restore,
                            .finish = Finish};

}  // namespace stasis::engine
