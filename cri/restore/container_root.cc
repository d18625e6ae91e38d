#include "cri/restore/container_root.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cri/restore/placeholder.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

// Runs `work` in the mount namespace of `pid`, on a thread that ends with it.
// Rule  setns(2) into a mount namespace is refused to a thread that shares its root and working
//       directory with others, as all threads of a process do until unshare(CLONE_FS).
// `work` gets /proc/TID of that thread, which may not be mounted there.
Status InMountNamespace(pid_t pid, const std::function<Status(int self)>& work) {
  ASSIGN_OR_RETURN(const UniqueFd space,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/mnt", O_RDONLY));
  Status result;
  std::thread([&] {
    const Result<UniqueFd> self = OpenAt(AT_FDCWD, "/proc/thread-self", O_PATH | O_DIRECTORY);
    if (!self.ok()) {
      result = self.status();
    } else if (::unshare(CLONE_FS) != 0) {
      const int error = errno;
      result = SyscallError(error, "unshare the thread's working directory");
    } else if (::setns(space.get(), CLONE_NEWNS) != 0) {
      const int error = errno;
      result = SyscallError(error, "enter the mount namespace of pid " + std::to_string(pid));
    } else {
      result = work(self->get());
    }
  }).join();
  return result;
}

}  // namespace

Result<UniqueFd> OpenMountAlone(pid_t pid, const engine::Mount& mount) {
  UniqueFd clone;
  const auto open = [&](int) -> Status {
    ASSIGN_OR_RETURN(const UniqueFd top,
                     OpenAt(AT_FDCWD, mount.mountpoint, O_PATH | O_NOFOLLOW | O_DIRECTORY));
    struct statx st = {};
    if (::statx(top.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0) {
      return SyscallError(errno, "statx " + mount.mountpoint);
    }
    if (st.stx_mnt_id != static_cast<std::uint64_t>(mount.id)) {
      return NotFound(mount.mountpoint + ": another mount is over it");
    }
    clone = UniqueFd(static_cast<int>(::syscall(
        SYS_open_tree, top.get(), "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)));
    return clone ? OkStatus() : SyscallError(errno, "open_tree of " + mount.mountpoint);
  };
  RETURN_IF_ERROR(InMountNamespace(pid, open));
  return OpenAt(clone.get(), ".", O_RDONLY | O_DIRECTORY);
}

namespace {

// Takes away the mount that hides what is at `path`, in a mount namespace that is the calling thread's alone.
// Rule  STATX_ATTR_MOUNT_ROOT: something is mounted there (statx(2), Linux 5.8)
Status Uncover(std::string path) {
  while (path.size() > 1) {
    const UniqueFd top(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC));
    struct statx st = {};
    const bool is_there = top && ::statx(top.get(), "", AT_EMPTY_PATH, 0, &st) == 0;
    if (is_there && (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0) {
      if (::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) return OkStatus();
      return SyscallError(errno, "umount " + path + " in a copy");
    }
    path.resize(path.rfind('/'));
  }
  return NotFound("nothing is mounted over it");
}

// Whether a copy of `mount` is what is at its place.
Result<bool> IsSeen(int self, const engine::Mount& mount) {
  const UniqueFd top(
      ::open(mount.mountpoint.c_str(), O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC));
  struct statx st = {};
  if (!top || ::statx(top.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0) return false;
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(self, "mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<engine::Mount> mounts, engine::ParseMountinfo(text));
  return std::ranges::any_of(mounts, [&](const engine::Mount& one) {
    return static_cast<std::uint64_t>(one.id) == st.stx_mnt_id && one.root == mount.root &&
           one.mountpoint == mount.mountpoint && one.dev_major == mount.dev_major &&
           one.dev_minor == mount.dev_minor;
  });
}

// Rule  A copy of a mount namespace (unshare(2) CLONE_NEWNS) has mounts of its own, of the same file systems: what is taken
//       away there stays where it was, once nothing is shared with it.
Status UncoverAll(int self, const engine::Mount& mount) {
  if (::unshare(CLONE_NEWNS) != 0) return SyscallError(errno, "unshare a mount namespace");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return SyscallError(errno, "mount --make-rprivate in a copy");
  }
  constexpr int kMostLayers = 1000;
  for (int layer = 0; layer < kMostLayers; ++layer) {
    ASSIGN_OR_RETURN(const bool is_seen, IsSeen(self, mount));
    if (is_seen) return OkStatus();
    RETURN_IF_ERROR(Uncover(mount.mountpoint));
  }
  return NotFound(mount.mountpoint + ": too much is mounted over it");
}

}  // namespace

Result<UniqueFd> OpenHiddenMount(pid_t pid, const engine::Mount& mount) {
  UniqueFd clone;
  const auto open = [&](int self) -> Status {
    RETURN_IF_ERROR(UncoverAll(self, mount));
    clone = UniqueFd(
        static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, mount.mountpoint.c_str(),
                                   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW)));
    return clone ? OkStatus() : SyscallError(errno, "open_tree of " + mount.mountpoint);
  };
  RETURN_IF_ERROR(InMountNamespace(pid, open));
  return OpenAt(clone.get(), ".", O_RDONLY | O_DIRECTORY);
}

Result<UniqueFd> OpenWritableRoot(pid_t pid) {
  UniqueFd root;
  const auto clone = [&root](int) {
    // A copy of the one mount, attached nowhere: changing its flags changes nothing that anybody
    // sees, and without AT_RECURSIVE the volumes under it are not there. open_tree(2) copies mounts
    // of the caller's own namespace only (fs/namespace.c, __do_loopback).
    root = UniqueFd(static_cast<int>(
        ::syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
    if (root) return OkStatus();
    const int error = errno;
    return SyscallError(error, "open_tree of the container's root");
  };
  RETURN_IF_ERROR(InMountNamespace(pid, clone));
  mount_attr writable{};
  writable.attr_clr = MOUNT_ATTR_RDONLY;
  if (::syscall(SYS_mount_setattr, root.get(), "", AT_EMPTY_PATH, &writable, sizeof(writable)) !=
      0) {
    const int error = errno;
    return SyscallError(error, "make the copy of the container's root mount writable");
  }
  return root;
}

Status HidePlaceholder(pid_t pid) {
  return InMountNamespace(pid, [](int) {
    // The file stays open for as long as a process maps it: MNT_DETACH.
    if (::umount2(kPlaceholderPath, MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
      const int error = errno;
      return SyscallError(error, "unmount " + std::string(kPlaceholderPath));
    }
    (void)::unlink(kPlaceholderPath);  // the empty mount point; where /dev is read-only it stays
    return OkStatus();
  });
}

}  // namespace stasis::cri
