// Source  flock(2), fcntl_locking(2), F_SETLEASE, fs/locks.c; tested on 6.18
// Rule    A lease that is about to break is shown as what it is to become. It is one for reading on a file that
//         is open for reading alone, unless it is to become that. (Also there it may have been one for writing,
//         which makes no difference any more: it has to go.)
// Rule    open(2) with O_NONBLOCK breaks a lease and says EWOULDBLOCK. What its holder is told by is the owner of
//         its signals, which F_SETLEASE sets where there is none
#include "engine/files/file_locks.h"

#include <fcntl.h>

#include <cerrno>
#include <string>

#include "engine/base/unique_fd.h"

namespace stasis::engine {

int LeaseType(const image::FileLockEntry& lock, int open_flags) {
  if ((lock.type() & kLeaseBreaking) == 0) return lock.type() == F_WRLCK ? F_WRLCK : F_RDLCK;
  const bool only_goes = (lock.type() & ~kLeaseBreaking) == F_UNLCK;
  return only_goes && (open_flags & O_ACCMODE) == O_RDONLY ? F_RDLCK : F_WRLCK;
}

Status BreakLease(int fd, const image::FileLockEntry& lock) {
  const bool goes = (lock.type() & ~kLeaseBreaking) == F_UNLCK;
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const UniqueFd opened(
      ::open(path.c_str(), (goes ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC));
  if (!opened && errno == EWOULDBLOCK) return OkStatus();
  if (!opened) return SyscallError(errno, "break a lease");
  return Internal("a lease did not hinder another open(2)");
}

Status LockTaken(const Status& status) {
  if (ErrnoOf(status) != EAGAIN && ErrnoOf(status) != EACCES) return status;
  return FailedPrecondition("another process has a lock on it that excludes the one to restore");
}

Status TakeOpenFileLock(int fd, const image::FileLockEntry& lock) {
  struct flock range = {};
  range.l_type = static_cast<short>(lock.type() == F_WRLCK ? F_WRLCK : F_RDLCK);
  range.l_whence = SEEK_SET;
  range.l_start = lock.start();
  range.l_len = lock.len();
  if (::fcntl(fd, F_OFD_SETLK, &range) == 0) return OkStatus();
  return LockTaken(SyscallError(errno, "take a lock"));
}

}  // namespace stasis::engine
