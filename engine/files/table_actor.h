// What the restore of files does in a process that has its descriptors by now.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/files/file_kind.h"
#include "engine/image/schema/files.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// An open file description as the images name it.
using FileKey = std::pair<image::FdTypes, std::uint32_t>;
inline FileKey KeyOf(const image::FdinfoEntry& descriptor) {
  return {descriptor.type(), descriptor.id()};
}
inline int NumberIn(const image::FdinfoEntry& descriptor) {
  return static_cast<int>(descriptor.fd());
}

class TableActor : public ProcessActor {
 public:
  TableActor(RestoredProcess& process, std::vector<std::string>& notes);

  int NumberOf(image::FdTypes type, std::uint32_t id, int prefer) const override;
  std::span<const image::FdinfoEntry> descriptors() const override {
    return process_.image->descriptors;
  }
  Status EpollAdd(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) override;
  Status AddWatch(int inotify_fd, int watch, const std::string& path, std::uint32_t mask) override;
  Status AddMark(int fanotify_fd, unsigned flags, std::uint64_t mask,
                 const std::string& path) override;
  Status SetOwner(int fd, const image::FownEntry& owner) override;
  Status Seek(int fd, std::uint64_t position) override;
  Status SetForeground(int fd, pid_t group) override;

  /// A POSIX lock belongs to the process that takes it.
  Status TakeLock(const image::FileLockEntry& lock);
  /// So does a flock(2) lock as far as /proc/locks shows it, though any holder of the file may release it.
  Status Flock(const image::FileLockEntry& lock);
  /// After the owner of its signal, which it would make this process. `ours` is the same open file.
  Status Lease(const image::FileLockEntry& lock, int ours, const image::FownEntry& owner);

 private:
  Status SetLease(const image::FileLockEntry& lock, int type, int ours);
  RemoteSyscalls& remote() { return *process_.remote; }

  RestoredProcess& process_;
  std::vector<std::string>& notes_;
  std::multimap<FileKey, int> numbers_;
};

}  // namespace stasis::engine
