// The address space of a process under restore.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint_images.h"
#include "engine/image/image_io.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

class LazyPages;

/// A start address for the area of ours that is free in the memory of every process of `images` and far
/// from where the kernel puts a fresh program. ResourceExhausted: there is none.
Result<std::uint64_t> ChooseAreaAddress(const CheckpointImages& images);

struct MemoryProgress {
  std::uint64_t pages = 0;  ///< Restored so far.
  std::function<void(std::uint64_t pages)> report;
  std::vector<std::string> notes;  ///< What is not as it was, for the report.
};

/// Replaces the memory of processes by what their images say: areas, their content, protection, advice and
/// locks, the vDSO at its old place, heap and argument addresses (PR_SET_MM_MAP), transparent huge pages
/// switched off. Nothing of ours is left in a process but the area.
class MemoryRestorer {
 public:
  /// Gives a descriptor of a mapped file (REG entry `id`), opened in the process with `flags`, in the
  /// process's own table; it is closed by us.
  using OpenFile = std::function<Result<int>(RestoredProcess&, std::uint32_t id, int flags)>;

  /// Reads all that the images say of the memory of `processes` (zombies excepted), in each of which our
  /// area is to be at `area_address`. `images`, `source`, `progress` and `lazy` outlive the result. `lazy`:
  /// null, or what brings the pages that may come later.
  ///
  /// InvalidArgument, DataLoss when an image is broken, Unimplemented for memory that we cannot restore.
  static Result<std::unique_ptr<MemoryRestorer>> Create(
      std::span<const ProcessImage* const> processes, const CheckpointImages& images,
      const ImageSource& source, std::uint64_t area_address, OpenFile open_file,
      MemoryProgress& progress, LazyPages* lazy = nullptr);
  virtual ~MemoryRestorer() = default;

  /// The memory of one process, whose image was among those of Create. `forked_from`: the image of the
  /// process that this one is a fork of and whose restored memory it still has, or null. Private pages that
  /// both have alike stay one page in memory, copied when one of them writes (fork(2)).
  ///
  /// FailedPrecondition: this kernel's vDSO is another than the one at dump; nothing was changed.
  virtual Status Restore(RestoredProcess& process, const ProcessImage* forked_from) = 0;

  /// Once all are restored.
  virtual Status Finish() = 0;
};

}  // namespace stasis::engine
