// Source  fcntl(2) F_SETOWN_EX, F_SETLEASE, epoll_ctl(2), inotify(7), ioctl_tty(2); tested on 6.18
#include "engine/files/table_actor.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/base/user_ids.h"
#include "engine/files/file_locks.h"

#ifndef INOTIFY_IOC_SETNEXTWD
#define INOTIFY_IOC_SETNEXTWD _IOW('I', 0, std::int32_t)  // linux/inotify.h
#endif

namespace stasis::engine {

using image::FdinfoEntry;
using image::FdTypes;
using image::FownEntry;

TableActor::TableActor(RestoredProcess& process, std::vector<std::string>& notes)
    : process_(process), notes_(notes) {
  for (const FdinfoEntry& descriptor : process.image->descriptors) {
    numbers_.emplace(KeyOf(descriptor), NumberIn(descriptor));
  }
}

int TableActor::NumberOf(FdTypes type, std::uint32_t id, int prefer) const {
  const auto [first, last] = numbers_.equal_range({type, id});
  if (first == last) return -1;
  const bool preferred =
      std::any_of(first, last, [&](const auto& n) { return n.second == prefer; });
  return preferred ? prefer : first->second;
}

Status TableActor::Seek(int fd, std::uint64_t position) {
  return remote().Call("lseek", SYS_lseek, fd, position, SEEK_SET).status();
}

Status TableActor::EpollAdd(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) {
  epoll_event event = {.events = events, .data = {.u64 = data}};
  remote().ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(event));
  return remote()
      .Call("epoll_ctl EPOLL_CTL_ADD", SYS_epoll_ctl, epoll_fd, EPOLL_CTL_ADD, fd, address)
      .status();
}

Status TableActor::AddWatch(int inotify_fd, int watch, const std::string& path,
                            std::uint32_t mask) {
  RETURN_IF_ERROR(
      remote()
          .Call("INOTIFY_IOC_SETNEXTWD", SYS_ioctl, inotify_fd, INOTIFY_IOC_SETNEXTWD, watch)
          .status());
  remote().ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
  ASSIGN_OR_RETURN(const std::uint64_t number, remote().Call("watch " + path, SYS_inotify_add_watch,
                                                             inotify_fd, address, mask));
  if (number == static_cast<std::uint64_t>(watch)) return OkStatus();
  return FailedPrecondition(path + " is what another watch of the checkpoint watches already");
}

Status TableActor::AddMark(int fanotify_fd, unsigned flags, std::uint64_t mask,
                           const std::string& path) {
  remote().ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
  return remote()
      .Call("mark " + path, SYS_fanotify_mark, fanotify_fd, flags | FAN_MARK_ADD, mask, AT_FDCWD,
            address)
      .status();
}

Status TableActor::TakeLock(const image::FileLockEntry& lock) {
  struct flock range = {};
  range.l_type = static_cast<short>(lock.type() == F_WRLCK ? F_WRLCK : F_RDLCK);
  range.l_whence = SEEK_SET;
  range.l_start = lock.start();
  range.l_len = lock.len();
  remote().ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(range));
  return LockTaken(remote().Call("fcntl F_SETLK", SYS_fcntl, lock.fd(), F_SETLK, address).status());
}

Status TableActor::Flock(const image::FileLockEntry& lock) {
  const int operation = (lock.type() == F_WRLCK ? LOCK_EX : LOCK_SH) | LOCK_NB;
  return LockTaken(remote().Call("flock", SYS_flock, lock.fd(), operation).status());
}

// Rule    A lease is for the owner of the file (the user id for file systems), or CAP_LEASE in the first user namespace
//         (fcntl(2), vfs_setlease() in fs/locks.c).
Status TableActor::SetLease(const image::FileLockEntry& lock, int type, int ours) {
  const auto set = [&] {
    return remote().Call("fcntl F_SETLEASE", SYS_fcntl, lock.fd(), F_SETLEASE, type).status();
  };
  const Status status = set();
  if (ErrnoOf(status) != EACCES) return LockTaken(status);
  struct stat st = {};
  if (::fstat(ours, &st) != 0) return SyscallError(errno, "fstat");
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(process_.proc.get()));
  ids.ShowInside(st);
  ASSIGN_OR_RETURN(const std::uint64_t before,
                   remote().Call("setfsuid", SYS_setfsuid, st.st_uid));  // or not, without a word
  const Status taken = set();
  RETURN_IF_ERROR(remote().Call("setfsuid", SYS_setfsuid, before).status());
  return LockTaken(taken);
}

Status TableActor::Lease(const image::FileLockEntry& lock, int ours, const FownEntry& owner) {
  const int flags = ::fcntl(ours, F_GETFL);
  if (flags < 0) return SyscallError(errno, "fcntl F_GETFL");
  RETURN_IF_ERROR(SetLease(lock, LeaseType(lock, flags), ours));
  if ((lock.type() & kLeaseBreaking) == 0) return OkStatus();
  // The holder has been told: nobody is, while it breaks again.
  const f_owner_ex nobody = {.type = F_OWNER_PID, .pid = 0};
  if (::fcntl(ours, F_SETOWN_EX, &nobody) != 0) return SyscallError(errno, "fcntl F_SETOWN_EX");
  RETURN_IF_ERROR(BreakLease(ours, lock));
  return SetOwner(static_cast<int>(lock.fd()), owner);
}

Status TableActor::SetOwner(int fd, const FownEntry& owner) {
  if (owner.pid() != 0) {
    // struct f_owner_ex, whose enumeration takes no strange value.
    const std::array<std::uint32_t, 2> target = {owner.pid_type(), owner.pid()};
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(target));
    const Status status =
        remote().Call("fcntl F_SETOWN_EX", SYS_fcntl, fd, F_SETOWN_EX, address).status();
    if (ErrnoOf(status) == ESRCH) {
      notes_.push_back("pid " + std::to_string(process_.image->pid()) + " fd " +
                       std::to_string(fd) + ": the receiver of its signals, " +
                       std::to_string(owner.pid()) + ", is no task of the checkpoint");
      return OkStatus();
    }
    RETURN_IF_ERROR(status);
  }
  if (owner.signum() == 0) return OkStatus();
  return remote().Call("fcntl F_SETSIG", SYS_fcntl, fd, F_SETSIG, owner.signum()).status();
}

Status TableActor::SetForeground(int fd, pid_t group) {
  remote().ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(group));
  const Status status =
      remote().Call("ioctl TIOCSPGRP", SYS_ioctl, fd, TIOCSPGRP, address).status();
  if (ErrnoOf(status) != ENOTTY) return status;
  return FailedPrecondition(
      "the terminal controlled the program's session, and here it does not: restore it from a "
      "shell "
      "on that terminal, or in a container with tty: true");
}

}  // namespace stasis::engine
