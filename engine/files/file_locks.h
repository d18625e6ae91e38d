// Locks on files: flock(2), and fcntl(2) with POSIX and open file description locks.
#pragma once

#include <cstdint>

#include "engine/base/status.h"
#include "engine/image/schema/files.pb.h"

namespace stasis::engine {

/// FileLockEntry.flag, numbers of CRIU's own.
enum FileLockFlag : std::uint32_t {
  kLockPosix = 1,
  kLockFlock = 2,
  kLockOpenFile = 4,
  kLockLease = 8
};

/// In FileLockEntry.type of a lease: it is about to break, and the rest says what it is to become.
constexpr std::uint32_t kLeaseBreaking = 4;

/// The type of the lease that `lock` was before anything broke it (F_RDLCK, F_WRLCK), on a file that is open with
/// `open_flags`.
int LeaseType(const image::FileLockEntry& lock, int open_flags);

/// Has the lease that `fd` holds break to what `lock` says, as the open(2) did that found it in its way.
Status BreakLease(int fd, const image::FileLockEntry& lock);

/// What trying to take a lock came to. FailedPrecondition: another one has it by now.
Status LockTaken(const Status& status);

/// Takes the open file description lock `lock` through our `fd`: it belongs to the open file description,
/// whoever takes it.
Status TakeOpenFileLock(int fd, const image::FileLockEntry& lock);

}  // namespace stasis::engine
