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

/// What trying to take a lock came to. FailedPrecondition: another one has it by now.
Status LockTaken(const Status& status);

/// Takes the open file description lock `lock` through our `fd`: it belongs to the open file description,
/// whoever takes it.
Status TakeOpenFileLock(int fd, const image::FileLockEntry& lock);

}  // namespace stasis::engine
