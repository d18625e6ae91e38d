// The address space of a process under restore.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/checkpoint_images.h"
#include "engine/image/image_io.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// A start address for the area of ours that is free in the memory of every process of `images` and far
/// from where the kernel puts a fresh program. ResourceExhausted: there is none.
Result<std::uint64_t> ChooseAreaAddress(const CheckpointImages& images);

struct MemoryProgress {
  std::uint64_t pages = 0;  ///< Restored so far.
  std::function<void(std::uint64_t pages)> report;
  std::vector<std::string> notes;  ///< What is not as it was, for the report.
};

/// Replaces all memory of each of `processes` (zombies excepted) but our area by what its image says:
/// areas, their content, protection, advice and locks, the vDSO at its old place, heap and argument
/// addresses (PR_SET_MM_MAP), transparent huge pages switched off. `open_file` gives a descriptor of a
/// mapped file (REG entry `id`), opened in the process with `flags`, in the process's own table; it is
/// closed by us.
///
/// All images are checked before any process is changed: InvalidArgument, DataLoss when they are broken,
/// Unimplemented for memory that we cannot restore, FailedPrecondition: this kernel's vDSO is another than
/// the one at dump. Nothing of ours is left in the processes but the area.
Status RestoreMemory(
    std::vector<RestoredProcess>& processes, const CheckpointImages& images,
    const ImageSource& source,
    const std::function<Result<int>(RestoredProcess&, std::uint32_t id, int flags)>& open_file,
    MemoryProgress& progress);

}  // namespace stasis::engine
