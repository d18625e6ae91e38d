#include "cri/restore/container_root.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>
#include <thread>

#include "cri/restore/placeholder.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

// Runs `work` in the mount namespace of `pid`, on a thread that ends with it.
// Rule  setns(2) into a mount namespace is refused to a thread that shares its root and working
//       directory with others, as all threads of a process do until unshare(CLONE_FS).
Status InMountNamespace(pid_t pid, const std::function<Status()>& work) {
  ASSIGN_OR_RETURN(const UniqueFd space,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/mnt", O_RDONLY));
  Status result;
  std::thread([&] {
    if (::unshare(CLONE_FS) != 0) {
      const int error = errno;
      result = SyscallError(error, "unshare the thread's working directory");
    } else if (::setns(space.get(), CLONE_NEWNS) != 0) {
      const int error = errno;
      result = SyscallError(error, "enter the mount namespace of pid " + std::to_string(pid));
    } else {
      result = work();
    }
  }).join();
  return result;
}

}  // namespace

Result<UniqueFd> OpenMountAlone(pid_t pid, const engine::Mount& mount) {
  UniqueFd clone;
  const auto open = [&]() -> Status {
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

Result<UniqueFd> OpenWritableRoot(pid_t pid) {
  UniqueFd root;
  const auto clone = [&root] {
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
  return InMountNamespace(pid, [] {
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
