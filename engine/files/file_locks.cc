// Source  flock(2), fcntl_locking(2), fs/locks.c; tested on 6.18
#include "engine/files/file_locks.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>

namespace stasis::engine {

Status TakeDescriptionLock(int fd, const image::FileLockEntry& lock) {
  int failed = 0;
  if (lock.flag() == kLockFlock) {
    failed = ::flock(fd, (lock.type() == F_WRLCK ? LOCK_EX : LOCK_SH) | LOCK_NB);
  } else {
    struct flock range = {};
    range.l_type = static_cast<short>(lock.type() == F_WRLCK ? F_WRLCK : F_RDLCK);
    range.l_whence = SEEK_SET;
    range.l_start = lock.start();
    range.l_len = lock.len();
    failed = ::fcntl(fd, F_OFD_SETLK, &range);
  }
  if (failed == 0) return OkStatus();
  if (errno == EAGAIN || errno == EACCES) {
    return FailedPrecondition("another process has a lock on it that excludes the one to restore");
  }
  return SyscallError(errno, "take a lock");
}

}  // namespace stasis::engine
