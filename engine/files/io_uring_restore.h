// Rings of io_uring, made anew by the processes that had them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/table_actor.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/io_uring.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

class RingRestorer {
 public:
  /// Reads the rings of a checkpoint; most have none. DataLoss, InvalidArgument: impossible ones.
  static Result<RingRestorer> Create(const ImageSource& source);

  /// True for a descriptor of one of them.
  bool Has(const FileKey& key) const {
    return key.first == image::FD_EXT && rings_.contains(key.second);
  }

  /// Puts the rings that `process` has at its descriptors, in place of what is there; those that no process has yet
  /// are made. `files` gets ours.
  Status Place(RestoredProcess& process, std::map<FileKey, UniqueFd>& files);
  /// Maps them where `process` had them mapped. After Place() of all that hold them before.
  Status Map(RestoredProcess& process);
  /// Brings all to where they were, and registers what they had. Once all processes have their descriptors, threads
  /// and memory. `files` are ours, open.
  Status Finish(std::vector<RestoredProcess>& processes, const std::map<FileKey, UniqueFd>& files);

 private:
  struct Ring {
    image::IoUringEntry state;
    std::string memory;  // of the ring, then of its submission entries
    RestoredProcess* maker = nullptr;
    int number = -1;  // there
    UniqueFd ours;
  };
  Status Make(RestoredProcess& process, Ring& ring, int& number);
  Result<int> Fetch(RestoredProcess& process, std::uint32_t id);
  Status FinishOne(std::vector<RestoredProcess>& processes, std::uint32_t id, Ring& ring,
                   const std::map<FileKey, UniqueFd>& files);
  Status TakeHandle(std::vector<RestoredProcess>& processes, std::uint32_t id,
                    const image::IoUringHandle& handle);

  std::map<std::uint32_t, Ring> rings_;  // by id
};

}  // namespace stasis::engine
