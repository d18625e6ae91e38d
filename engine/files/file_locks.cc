// Source  flock(2), fcntl_locking(2), fs/locks.c; tested on 6.18
#include "engine/files/file_locks.h"

#include <fcntl.h>

#include <cerrno>

namespace stasis::engine {

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
