// inotify(7): watched inodes behind the link "anon_inode:inotify".
//
// State    fdinfo: of each watch its number, mask, and the inode with device and file handle; no path
// Dump     a path is looked for among the tree's open files and the folders above them, then by
//          open_by_handle_at(2), then in the folders of that file system. Right is a path on which a
//          watch of our own shows the same inode and device: what stat(2) says of overlayfs differs
// Image    FD_INOTIFY; the path is in the handle's field for it, where CRIU's search leaves its own
// Restore  at the very end, in the process: what a restore opens must not be among the events.
//          Numbers by INOTIFY_IOC_SETNEXTWD (CONFIG_CHECKPOINT_RESTORE, Linux 4.17)
//          What is deleted is watched by the link in /proc of a process that has it open
// Lost     events that nobody has read: the report names them
// Source   inotify(7), proc_pid_fdinfo(5), fs/notify/fdinfo.c, fs/notify/inotify/; tested on 6.18
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <set>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/path.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {
namespace {

// The most folder entries that are looked at for one watch. The tree stands still for it: half a second.
constexpr std::size_t kSearchLimit = 300'000;

constexpr std::uint32_t kKeptMask = IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK;

const std::string kProc = "/proc/";

bool Owns(const OpenFile& file) {
  return file.link == "anon_inode:inotify" || file.link == "anon_inode:[inotify]";
}

// ---- dump ----

bool IsOn(const Mount& mount, const InotifyWatch& watch) {
  return (mount.dev_major << 20 | mount.dev_minor) == watch.device;
}

// Looks for the path of what `watch` watches, in the root of the holder of `file`.
class Search {
 public:
  Search(const OpenFile& file, const InotifyWatch& watch, const FileDumpContext& context)
      : file_(file), watch_(watch), context_(context), root_(context.RootOf(file)) {}

  /// A path that leads to it, if possible one that does in another pod, too.
  Result<std::optional<std::string>> Run() {
    ASSIGN_OR_RETURN(std::optional<std::string> path, AnyPath());
    if (path) {
      const std::string lasting = ThroughDataLink(*path);
      if (!lasting.empty() && IsIt(lasting)) return lasting;
    }
    return path;
  }

 private:
  Result<std::optional<std::string>> AnyPath() {
    for (const std::string& path : Likely()) {
      if (IsIt(path)) return path;
    }
    if (const auto link = Held()) return link;
    ASSIGN_OR_RETURN(const std::string text,
                     ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file_.pid) + "/mountinfo"));
    ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(text));
    for (const Mount& mount : mounts) {
      if (!IsOn(mount, watch_)) continue;
      if (const auto path = ByHandle(mount.mountpoint)) return path;
    }
    for (const Mount& mount : mounts) {
      if (!IsOn(mount, watch_)) continue;
      if (const auto path = Below(mount.mountpoint)) return path;
    }
    return std::nullopt;
  }

  // Open files of the tree with that inode, and all folders above open files.
  std::vector<std::string> Likely() const {
    std::set<std::string> folders;
    std::vector<std::string> paths;
    for (const OpenFile& other : context_.files()) {
      if (!other.link.starts_with('/')) continue;
      if (other.st.st_ino == watch_.inode) paths.push_back(other.link);
      for (std::size_t end = other.link.rfind('/'); end != std::string::npos && end > 0;
           end = other.link.rfind('/', end - 1)) {
        folders.insert(other.link.substr(0, end));
      }
    }
    paths.insert(paths.end(), folders.begin(), folders.end());
    return paths;
  }

  // What is deleted, and open somewhere in the tree.
  std::optional<std::string> Held() const {
    for (const OpenFile& other : context_.files()) {
      if (other.st.st_ino != watch_.inode || !IsIt(other.borrowed.get())) continue;
      return kProc + std::to_string(other.ns_pid) + "/fd/" + std::to_string(other.fd);
    }
    return std::nullopt;
  }

  UniqueFd Open(const std::string& path, std::uint64_t flags) const {
    open_how how = {};
    how.flags = flags | O_NOFOLLOW | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    return UniqueFd(
        static_cast<int>(::syscall(SYS_openat2, root_, path.c_str(), &how, sizeof(how))));
  }

  bool IsIt(const std::string& path) const {
    const UniqueFd found = Open(path, O_PATH);
    return found && IsIt(found.get());
  }

  bool IsIt(int fd) const {
    const UniqueFd ours(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!ours) return false;
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::inotify_add_watch(ours.get(), link.c_str(), IN_DELETE_SELF) < 0) return false;
    const auto text =
        ReadFileAt(AT_FDCWD, "/proc/thread-self/fdinfo/" + std::to_string(ours.get()));
    if (!text.ok()) return false;
    const auto watches = ParseInotify(*text);
    return watches.ok() && watches->size() == 1 && watches->front().inode == watch_.inode &&
           watches->front().device == watch_.device;
  }

  // By the handle, as far as the file system can: overlayfs cannot without nfs_export=on.
  std::optional<std::string> ByHandle(const std::string& mountpoint) const {
    struct {
      struct file_handle head;
      std::array<char, MAX_HANDLE_SZ> room;
    } handle = {};
    if (watch_.handle.empty() || watch_.handle.size() > handle.room.size()) return std::nullopt;
    handle.head.handle_bytes = static_cast<unsigned>(watch_.handle.size());
    handle.head.handle_type = watch_.handle_type;
    std::memcpy(handle.head.f_handle, watch_.handle.data(), watch_.handle.size());
    const UniqueFd mount = Open(mountpoint, O_RDONLY | O_NONBLOCK);
    if (!mount) return std::nullopt;
    const UniqueFd found(::open_by_handle_at(mount.get(), &handle.head, O_PATH | O_CLOEXEC));
    if (!found) return std::nullopt;
    Result<std::string> path = ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(found.get()));
    if (path.ok() && IsIt(*path)) return *std::move(path);
    return std::nullopt;
  }

  // Folder by folder below `top`, the nearest first, without leaving its file system.
  std::optional<std::string> Below(const std::string& top) {
    std::vector<std::string> level = {top};
    while (!level.empty()) {
      std::vector<std::string> next;
      for (const std::string& folder : level) {
        if (const auto path = In(folder, next)) return path;
        if (looked_at_ > kSearchLimit) return std::nullopt;
      }
      level = std::move(next);
    }
    return std::nullopt;
  }

  std::optional<std::string> In(const std::string& folder, std::vector<std::string>& folders) {
    UniqueFd fd = Open(folder, O_RDONLY | O_DIRECTORY | O_NONBLOCK);
    if (!fd) return std::nullopt;
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(fd.get()), ::closedir);
    if (!entries) return std::nullopt;
    (void)fd.Release();  // closedir(3) closes it
    struct stat st = {};
    if (::fstat(::dirfd(entries.get()), &st) != 0) return std::nullopt;
    if (folder == "/" && st.st_ino == watch_.inode && IsIt(folder)) return folder;
    while (const dirent* const entry = ::readdir(entries.get())) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      ++looked_at_;
      std::string path = (folder == "/" ? "" : folder) + "/" + name;
      if (entry->d_ino == watch_.inode && IsIt(path)) return path;
      if (entry->d_type == DT_DIR) folders.push_back(std::move(path));
    }
    return std::nullopt;
  }

  const OpenFile& file_;
  const InotifyWatch& watch_;
  const FileDumpContext& context_;
  int root_;
  std::size_t looked_at_ = 0;
};

image::InotifyWdEntry ToEntry(const InotifyWatch& watch, std::uint32_t id, std::string path) {
  image::InotifyWdEntry entry;
  entry.set_id(id);
  entry.set_i_ino(watch.inode);
  entry.set_mask(watch.mask);
  entry.set_ignored_mask(watch.ignored_mask);
  entry.set_s_dev(watch.device);
  entry.set_wd(watch.number);
  image::FhEntry& handle = *entry.mutable_f_handle();
  handle.set_bytes(static_cast<std::uint32_t>(watch.handle.size()));
  handle.set_type(static_cast<std::uint32_t>(watch.handle_type));
  std::array<std::uint64_t, 16> words = {};  // as CRIU: always 128 bytes
  std::memcpy(words.data(), watch.handle.data(), std::min(watch.handle.size(), sizeof(words)));
  handle.mutable_handle()->Add(words.begin(), words.end());
  handle.set_path(std::move(path));
  return entry;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const auto watches = ParseInotify(file.fdinfo);
  if (!watches.ok()) return Annotate(watches.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_INOTIFY);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_ify()));
  for (const InotifyWatch& watch : *watches) {
    ASSIGN_OR_RETURN(std::optional<std::string> path, Search(file, watch, context).Run());
    if (!path) {
      return Unimplemented(NameOf(file) + ": no path leads to inode " +
                           std::to_string(watch.inode) + " of device " +
                           std::to_string(watch.device >> 20) + ":" +
                           std::to_string(watch.device & 0xfffff) + ", which it watches");
    }
    *entry.mutable_ify()->add_wd() = ToEntry(watch, file.id, *std::move(path));
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
    const std::uint32_t follow = path.starts_with(kProc) ? 0 : IN_DONT_FOLLOW;
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
