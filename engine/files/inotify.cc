// inotify(7): watched inodes behind the link "anon_inode:inotify".
//
// State    fdinfo: of each watch its number, mask, and the inode with device and file handle; no path
// Dump     a path is looked for (watched_path.h)
// Image    FD_INOTIFY; the path is in the handle's field for it, where CRIU's search leaves its own
// Restore  at the very end, in the process: what a restore opens must not be among the events.
//          Numbers by INOTIFY_IOC_SETNEXTWD (CONFIG_CHECKPOINT_RESTORE, Linux 4.17)
//          What is deleted is watched by the link in /proc of a process that has it open
// Lost     events that nobody has read: the report names them
// Source   inotify(7), proc_pid_fdinfo(5), fs/notify/fdinfo.c, fs/notify/inotify/; tested on 6.18
#include <sys/inotify.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/watched_path.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kKeptMask = IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK;

bool Owns(const OpenFile& file) {
  return file.link == "anon_inode:inotify" || file.link == "anon_inode:[inotify]";
}

// ---- dump ----

image::InotifyWdEntry ToEntry(const InotifyWatch& watch, std::uint32_t id, std::string path) {
  image::InotifyWdEntry entry;
  entry.set_id(id);
  entry.set_i_ino(watch.inode);
  entry.set_mask(watch.mask);
  entry.set_ignored_mask(watch.ignored_mask);
  entry.set_s_dev(watch.device);
  entry.set_wd(watch.number);
  *entry.mutable_f_handle() = HandleEntry(watch, std::move(path));
  return entry;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const auto watches = ParseInotify(file.fdinfo);
  if (!watches.ok()) return Annotate(watches.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_INOTIFY);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_ify()));
  for (const InotifyWatch& watch : *watches) {
    ASSIGN_OR_RETURN(std::string path, PathOfWatched(file, watch, context));
    *entry.mutable_ify()->add_wd() = ToEntry(watch, file.id, std::move(path));
  }
  int waiting = 0;
  if (::ioctl(file.borrowed.get(), FIONREAD, &waiting) != 0) {
    return SyscallError(errno, "FIONREAD " + NameOf(file));
  }
  if (waiting > 0) context.Note(NameOf(file) + ": events that nobody has read will be gone");
  return entry;
}

// ---- restore ----

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext&) {
  if (!entry.has_ify()) return DataLoss("no inotify in the entry");
  UniqueFd fd(::inotify_init1(IN_CLOEXEC));
  if (!fd) {
    return SyscallError(errno, "inotify_init1");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.ify().flags()));
  return fd;
}

// With the rights of the process, which had them when it added the watch.
Status Finish(const image::FileEntry& entry, int fd, ProcessActor& process) {
  for (const image::InotifyWdEntry& watch : entry.ify().wd()) {
    const std::string& path = watch.f_handle().path();
    if (!path.starts_with('/')) {
      return Unimplemented(
          "an inotify watch without a path, by file handle alone (of CRIU without "
          "--force-irmap), cannot be restored yet");
    }
    // A link of /proc leads to what a process of the tree has open.
    const std::uint32_t follow = IsPathOfHeld(path) ? 0 : IN_DONT_FOLLOW;
    const Status status = process.AddWatch(fd, static_cast<int>(watch.wd()), path,
                                           (watch.mask() & kKeptMask) | follow);
    const int error = ErrnoOf(status);
    if (error == ENOENT || error == ENOTDIR || error == EACCES) {
      return FailedPrecondition(Message(status) +
                                ": it was watched at the checkpoint; bring it back");
    }
    RETURN_IF_ERROR(status);
  }
  return OkStatus();
}

}  // namespace

const FileKind kInotify = {.name = "inotify",
                           .owns = Owns,
                           .dump = Dump,
                           .type = image::FD_INOTIFY,
                           .restore = Restore,
                           .finish = Finish};

}  // namespace stasis::engine
