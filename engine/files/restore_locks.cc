#include "engine/files/restore_locks.h"

#include <fcntl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/files/file_locks.h"
#include "engine/image/image_file.h"

namespace stasis::engine {
namespace {

// What `descriptor` of `actor` has open holds `lock`.
Status TakeFileLock(const image::FileLockEntry& lock, const image::FdinfoEntry& descriptor,
                    const CheckpointImages& images, std::map<FileKey, UniqueFd>& files,
                    TableActor& actor) {
  const FileKey key = KeyOf(descriptor);
  switch (lock.flag()) {
    case kLockPosix:
      return actor.TakeLock(lock);
    case kLockFlock:
      return actor.Flock(lock);
    case kLockOpenFile:
      return TakeOpenFileLock(files[key].get(), lock);
    case kLockLease:
      if (lock.type() > (kLeaseBreaking | F_UNLCK)) break;
      return actor.Lease(lock, files[key].get(), images.File(key.first, key.second)->reg().fown());
    default:
      break;
  }
  return Unimplemented("kind " + std::to_string(lock.flag()));
}

}  // namespace

Status TakeFileLocks(const CheckpointImages& images, const ImageSource& source,
                     std::map<FileKey, UniqueFd>& files, std::map<pid_t, TableActor>& actors) {
  ASSIGN_OR_RETURN(const std::vector<image::FileLockEntry> locks,
                   ReadRecords<image::FileLockEntry>(source, ImageName("filelocks"), "filelocks"));
  for (const image::FileLockEntry& lock : locks) {
    const std::string name = "pid " + std::to_string(lock.pid()) + " fd " +
                             std::to_string(static_cast<int>(lock.fd())) + ", file lock";
    const auto actor = actors.find(lock.pid());
    if (actor == actors.end()) return InvalidArgument(name + ": no such process");
    const auto& descriptors = actor->second.descriptors();
    const auto descriptor = std::ranges::find(descriptors, lock.fd(), NumberIn);
    if (descriptor == descriptors.end()) return InvalidArgument(name + ": no such descriptor");
    RETURN_IF_ERROR(Annotate(TakeFileLock(lock, *descriptor, images, files, actor->second), name));
  }
  return OkStatus();
}

}  // namespace stasis::engine
