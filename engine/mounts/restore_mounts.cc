// Order   what was unmounted; the mounts that were the runtime's are opened while nothing hides them; each new one,
//         filled before another is on it; flags and sharing when all are in their places
// Source  mount(2), openat2(2), fsopen(2), move_mount(2), open_tree(2), mount_setattr(2), seccomp(2);
//         fs/namespace.c; tested on 6.18
// Rule    All calls are the root's: its root directory, namespaces, capabilities and security module judge them. Its
//         seccomp filter does not (process_tree.h), so it is asked first
// Rule    A path is looked up from a descriptor of the mount that it is in, through no link and into no other mount:
//         it cannot lead out of the root, nor to what was mounted over it
// Rule    What is mounted on a shared mount, or taken from it, comes to its peers outside of the container: never
#include "engine/mounts/restore_mounts.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "engine/base/io.h"
#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"
#include "engine/mounts/mount_plan.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/text.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

using Sharing = PlannedMount::Sharing;

std::uint64_t Attributes(const image::MntEntry& entry) {
  constexpr std::pair<unsigned long, std::uint64_t> kFlags[] = {
      {MS_RDONLY, MOUNT_ATTR_RDONLY},         {MS_NOSUID, MOUNT_ATTR_NOSUID},
      {MS_NODEV, MOUNT_ATTR_NODEV},           {MS_NOEXEC, MOUNT_ATTR_NOEXEC},
      {MS_NODIRATIME, MOUNT_ATTR_NODIRATIME}, {256, MOUNT_ATTR_NOSYMFOLLOW},  // MS_NOSYMFOLLOW
  };
  std::uint64_t attributes = 0;
  for (const auto& [flag, attribute] : kFlags) {
    if ((entry.flags() & flag) != 0) attributes |= attribute;
  }
  if ((entry.flags() & MS_NOATIME) != 0) return attributes | MOUNT_ATTR_NOATIME;
  return attributes |
         ((entry.flags() & MS_RELATIME) != 0 ? MOUNT_ATTR_RELATIME : MOUNT_ATTR_STRICTATIME);
}
constexpr std::uint64_t kAllAttributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                         MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODIRATIME |
                                         MOUNT_ATTR_NOSYMFOLLOW | MOUNT_ATTR__ATIME;

std::uint64_t Propagation(Sharing sharing) {
  switch (sharing) {
    case Sharing::kAsSource:
      return 0;
    case Sharing::kPrivate:
      return MS_PRIVATE;
    case Sharing::kSlave:
      return MS_SLAVE;
    case Sharing::kShared:
      return MS_SHARED;
    case Sharing::kUnbindable:
      return MS_UNBINDABLE;
  }
  return MS_PRIVATE;
}

// Calls of the root. Its descriptors are plain numbers here; what is left of them goes with the program that it
// executes later (all are O_CLOEXEC).
class Mounter {
 public:
  explicit Mounter(RestoredProcess& root) : root_(root), remote_(*root.remote) {}

  /// PermissionDenied when a filter of the root's own keeps it from mounting: asked by a call that the kernel
  /// refuses anyway, for an address that is none.
  Status CheckFilter() {
    RETURN_IF_ERROR(SetOptions(RestoreOptions() & ~unsigned{PTRACE_O_SUSPEND_SECCOMP}));
    const Status answer = remote_.Call("mount", SYS_mount, 0, 1, 0, 0, 0).status();
    RETURN_IF_ERROR(SetOptions(RestoreOptions()));
    if (ErrnoOf(answer) == EFAULT) return OkStatus();
    return PermissionDenied("its seccomp profile does not allow mount(2)");
  }

  Result<std::vector<Mount>> Mounts() const {
    ASSIGN_OR_RETURN(const std::string text, ReadFileAt(root_.proc.get(), "mountinfo"));
    return ParseMountinfo(text);
  }

  /// The mount whose root, or a file of which, descriptor `fd` is.
  Result<Mount> MountOf(int fd) const {
    ASSIGN_OR_RETURN(const std::string text,
                     ReadFileAt(root_.proc.get(), "fdinfo/" + std::to_string(fd)));
    ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(text));
    ASSIGN_OR_RETURN(const std::vector<Mount> mounts, Mounts());
    const auto found = std::ranges::find(mounts, info.mnt_id, &Mount::id);
    if (found == mounts.end()) return FailedPrecondition("it is on no mount that is to be seen");
    return *found;
  }

  Result<int> Open(int folder, const std::string& path, std::uint64_t resolve) {
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(path));
    open_how how = {};
    how.flags = O_PATH | O_CLOEXEC;
    how.resolve = resolve | RESOLVE_NO_SYMLINKS;
    ASSIGN_OR_RETURN(const std::uint64_t address, remote_.PutValue(how));
    ASSIGN_OR_RETURN(const std::uint64_t fd,
                     remote_.Call("open " + path, SYS_openat2, folder, name, address, sizeof(how)));
    return static_cast<int>(fd);
  }

  /// `path` in the mount whose root is `mount`, itself when that is empty.
  Result<int> OpenIn(int mount, const std::string& path) {
    return Open(mount, path.empty() ? "." : path, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
  }

  /// The same, where there is nothing yet: on a file system of the runtime's that is new, too.
  Result<int> MakePlace(int mount, const std::string& path, bool is_folder) {
    Result<int> fd = OpenIn(mount, "");
    for (std::string_view rest = path; fd.ok() && !rest.empty();) {
      const std::string name(text::Cut(rest, '/'));
      Result<int> next = OpenIn(*fd, name);
      if (ErrnoOf(next.status()) == ENOENT) {
        RETURN_IF_ERROR(MakeOne(*fd, name, is_folder || !rest.empty()));
        next = OpenIn(*fd, name);
      }
      Close(*fd);
      fd = std::move(next);
    }
    return fd;
  }

  Result<int> NewFileSystem(const image::MntEntry& entry) {
    const std::string type = FsTypeName(entry);
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(type));
    ASSIGN_OR_RETURN(const std::uint64_t context,
                     remote_.Call("fsopen " + type, SYS_fsopen, name, FSOPEN_CLOEXEC));
    const int fd = static_cast<int>(context);
    RETURN_IF_ERROR(Configure(fd, FSCONFIG_SET_STRING, "source",
                              entry.source().empty() ? "none" : entry.source()));
    ASSIGN_OR_RETURN(const std::vector<MountOption> options, OptionsOf(entry));
    for (const auto& [key, value] : options) {
      const unsigned command = value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
      RETURN_IF_ERROR(Configure(fd, command, key, value));
    }
    RETURN_IF_ERROR(
        remote_.Call("make the file system", SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, 0, 0, 0)
            .status());
    ASSIGN_OR_RETURN(const std::uint64_t mount,
                     remote_.Call("fsmount " + type, SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0));
    Close(fd);
    return static_cast<int>(mount);
  }

  Result<int> Copy(int fd) {
    ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
    ASSIGN_OR_RETURN(const std::uint64_t copy,
                     remote_.Call("open_tree", SYS_open_tree, fd, empty,
                                  OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
    return static_cast<int>(copy);
  }

  Status Attach(int mount, int place) {
    ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
    return remote_
        .Call("move_mount", SYS_move_mount, mount, empty, place, empty,
              MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
        .status();
  }

  Status Set(int mount, const mount_attr& attributes) {
    ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
    ASSIGN_OR_RETURN(const std::uint64_t address, remote_.PutValue(attributes));
    return remote_
        .Call("mount_setattr", SYS_mount_setattr, mount, empty, AT_EMPTY_PATH, address,
              sizeof(attributes))
        .status();
  }

  /// The whole file system of `mount`, not this mount of it alone.
  Status MakeReadOnly(int mount) {
    ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
    ASSIGN_OR_RETURN(const std::uint64_t context, remote_.Call("fspick", SYS_fspick, mount, empty,
                                                               FSPICK_CLOEXEC | FSPICK_EMPTY_PATH));
    const int fd = static_cast<int>(context);
    RETURN_IF_ERROR(Configure(fd, FSCONFIG_SET_FLAG, "ro", std::nullopt));
    RETURN_IF_ERROR(
        remote_.Call("make it read-only", SYS_fsconfig, fd, FSCONFIG_CMD_RECONFIGURE, 0, 0, 0)
            .status());
    Close(fd);
    return OkStatus();
  }

  Status Unmount(const std::string& place) {
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(place));
    return remote_.Call("unmount " + place, SYS_umount2, name, MNT_DETACH | UMOUNT_NOFOLLOW)
        .status();
  }

  /// In our own table, the folder `fd` of the root.
  Result<UniqueFd> Take(int fd) const {
    return OpenAt(root_.proc.get(), "fd/" + std::to_string(fd), O_RDONLY | O_DIRECTORY);
  }

  void Close(int fd) { (void)remote_.Call("close", SYS_close, fd); }

 private:
  Status SetOptions(unsigned options) {
    if (::ptrace(PTRACE_SETOPTIONS, remote_.tracee().tid(), nullptr,
                 reinterpret_cast<void*>(static_cast<std::uintptr_t>(options))) != 0) {
      return SyscallError(errno, "ptrace SETOPTIONS");
    }
    return OkStatus();
  }

  Result<std::uint64_t> Empty() {
    remote_.ResetArguments();
    return remote_.Put(std::string_view(""));
  }

  Status MakeOne(int folder, const std::string& name, bool is_folder) {
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote_.Put(name));
    if (is_folder) {
      return remote_.Call("mkdir " + name, SYS_mkdirat, folder, address, 0755).status();
    }
    return remote_.Call("mknod " + name, SYS_mknodat, folder, address, S_IFREG | 0644, 0).status();
  }

  Status Configure(int context, unsigned command, const std::string& key,
                   const std::optional<std::string>& value) {
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(key));
    std::uint64_t address = 0;
    if (value) {
      ASSIGN_OR_RETURN(address, remote_.Put(*value));
    }
    return remote_
        .Call("set " + key + (value ? "=" + *value : ""), SYS_fsconfig, context, command, name,
              address, 0)
        .status();
  }

  RestoredProcess& root_;
  RemoteSyscalls& remote_;
};

class MountRestorer {
 public:
  MountRestorer(RestoredProcess& root, std::span<const image::MntEntry> all, const FillTmpfs& fill,
                std::vector<std::string>& notes)
      : mounter_(root), all_(all), fill_(fill), notes_(notes) {}

  Status Run() {
    ASSIGN_OR_RETURN(const std::vector<PlannedMount> plan, PlanMounts(all_));
    RETURN_IF_ERROR(mounter_.CheckFilter());
    for (const image::MntEntry& entry : all_) {
      for (const std::string& place : entry.unmounted()) RETURN_IF_ERROR(Unmount(place));
    }
    RETURN_IF_ERROR(OpenGiven(plan));
    for (const PlannedMount& mount : plan) {
      RETURN_IF_ERROR(Annotate(Make(mount), "mount at " + mount.entry->mountpoint()));
    }
    for (const PlannedMount& mount : plan) {
      RETURN_IF_ERROR(Annotate(Finish(mount), "mount at " + mount.entry->mountpoint()));
    }
    RETURN_IF_ERROR(ChangeGiven());
    for (const auto& [id, fd] : open_) mounter_.Close(fd);
    return OkStatus();
  }

 private:
  static bool IsChanged(const image::MntEntry& entry) {
    return entry.access_changed() || entry.sharing_changed();
  }

  // What others of a shared mount would lose too stays. So does what the runtime did not mount this time.
  Status Unmount(const std::string& place) {
    ASSIGN_OR_RETURN(const std::vector<Mount> mounts, mounter_.Mounts());
    const auto found = std::ranges::find(mounts, place, &Mount::mountpoint);
    if (place == "/" || found == mounts.end()) return OkStatus();
    const auto parent = std::ranges::find(mounts, found->parent, &Mount::id);
    if (parent == mounts.end() || IsShared(*parent)) {
      notes_.push_back(place + " is mounted again: it was unmounted, and is shared here");
      return OkStatus();
    }
    return mounter_.Unmount(place);
  }

  Status OpenGiven(const std::vector<PlannedMount>& plan) {
    std::set<std::uint32_t> needed;
    for (const PlannedMount& mount : plan) {
      needed.insert(mount.parent);
      if (!mount.is_new) needed.insert(mount.source);
    }
    for (const image::MntEntry& entry : all_) {
      if (entry.made_inside() || !(IsChanged(entry) || needed.contains(entry.mnt_id()))) continue;
      Result<int> fd = OpenOne(entry);
      if (!fd.ok()) return Annotate(fd.status(), "the container's mount at " + entry.mountpoint());
      open_[entry.mnt_id()] = *fd;
    }
    return OkStatus();
  }

  Result<int> OpenOne(const image::MntEntry& entry) {
    ASSIGN_OR_RETURN(const int fd, mounter_.Open(AT_FDCWD, entry.mountpoint(), 0));
    ASSIGN_OR_RETURN(const Mount mount, mounter_.MountOf(fd));
    if (mount.mountpoint != entry.mountpoint()) {
      return FailedPrecondition(
          "it is not there; give the container what it was checkpointed with");
    }
    return fd;
  }

  Status Make(const PlannedMount& mount) {
    const image::MntEntry& entry = *mount.entry;
    int made = -1;
    if (mount.is_new) {
      ASSIGN_OR_RETURN(made, mounter_.NewFileSystem(entry));
    } else {
      ASSIGN_OR_RETURN(const int source,
                       mounter_.OpenIn(open_.at(mount.source), mount.path_in_source));
      ASSIGN_OR_RETURN(made, mounter_.Copy(source));
      mounter_.Close(source);
      RETURN_IF_ERROR(Part(made, mount.sharing));
    }
    open_[entry.mnt_id()] = made;
    if (mount.is_new && FsTypeName(entry) == "tmpfs" && fill_) {
      ASSIGN_OR_RETURN(const UniqueFd folder, mounter_.Take(made));
      RETURN_IF_ERROR(fill_(entry.root_dev(), folder.get()));
    }
    ASSIGN_OR_RETURN(const int place, mounter_.MakePlace(open_.at(mount.parent),
                                                         mount.path_in_parent, IsFolder(made)));
    ASSIGN_OR_RETURN(const Mount on, mounter_.MountOf(open_.at(mount.parent)));
    if (IsShared(on)) {
      return FailedPrecondition("it would be on " + on.mountpoint +
                                ", which is shared with outside of the container");
    }
    RETURN_IF_ERROR(mounter_.Attach(made, place));
    mounter_.Close(place);
    return OkStatus();
  }

  // A copy is a peer of what it is a copy of.
  Status Part(int copy, Sharing sharing) {
    if (sharing == Sharing::kAsSource) return OkStatus();
    mount_attr attributes = {};
    attributes.propagation = sharing == Sharing::kSlave ? MS_SLAVE : MS_PRIVATE;
    return mounter_.Set(copy, attributes);
  }

  bool IsFolder(int fd) const { return mounter_.Take(fd).ok(); }

  Status Finish(const PlannedMount& mount) {
    const int fd = open_.at(mount.entry->mnt_id());
    const bool is_read_only = (mount.entry->sb_flags() & MS_RDONLY) != 0;
    if (mount.is_new && is_read_only) RETURN_IF_ERROR(mounter_.MakeReadOnly(fd));
    mount_attr attributes = {};
    attributes.attr_set = Attributes(*mount.entry);
    attributes.attr_clr = kAllAttributes;
    attributes.propagation = Propagation(mount.sharing);
    return mounter_.Set(fd, attributes);
  }

  Status ChangeGiven() {
    for (const image::MntEntry& entry : all_) {
      if (!IsChanged(entry) || entry.made_inside()) continue;
      mount_attr attributes = {};
      if (entry.access_changed()) {
        ((entry.flags() & MS_RDONLY) != 0 ? attributes.attr_set : attributes.attr_clr) =
            MOUNT_ATTR_RDONLY;
      }
      if (entry.sharing_changed()) attributes.propagation = MS_SHARED;
      RETURN_IF_ERROR(
          Annotate(mounter_.Set(open_.at(entry.mnt_id()), attributes), entry.mountpoint()));
    }
    return OkStatus();
  }

  Mounter mounter_;
  const std::span<const image::MntEntry> all_;
  const FillTmpfs& fill_;
  std::vector<std::string>& notes_;
  std::map<std::uint32_t, int> open_;  // the root's descriptors, by the ids of the mounts
};

}  // namespace

Status RestoreMounts(RestoredProcess& root, std::span<const image::MntEntry> all,
                     const FillTmpfs& fill, std::vector<std::string>& notes) {
  const bool any = std::ranges::any_of(all, [](const image::MntEntry& entry) {
    return entry.made_inside() || entry.access_changed() || entry.sharing_changed() ||
           entry.unmounted_size() > 0;
  });
  if (!any) return OkStatus();
  return Annotate(MountRestorer(root, all, fill, notes).Run(),
                  "the mounts that processes of it had made");
}

}  // namespace stasis::engine
