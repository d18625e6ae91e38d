// The areas of an address space: made, advised, locked.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/memory/system_v.h"
#include "engine/tasks/restored_process.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {

/// An object of MAP_SHARED | MAP_ANONYMOUS memory, which several processes or areas may share.
struct SharedObject {
  int huge_pages = 0;            ///< kHugePageFlags of its areas.
  std::uint64_t size = 0;        ///< Bytes, up to the end of the farthest area or page.
  std::uint64_t areas = 0;       ///< That are still to be mapped.
  std::uint64_t no_reserve = 0;  ///< Of them with MAP_NORESERVE.
  PageSet pages;
  UniqueFd fd;  ///< Once it is made, and until its last area is mapped.
};
using SharedObjects = std::map<std::uint64_t, SharedObject>;

/// Counts the shared areas of `layout` into `objects`. InvalidArgument: one is larger than memory can be.
Status CollectSharedObjects(const MemoryLayout& layout, SharedObjects& objects);

/// Unmaps everything of `process` but our area, its vDSO and what is `kept`.
Status ClearMemory(RestoredProcess& process, const AddressRange& vdso,
                   std::vector<AddressRange> kept);

/// Makes a shared object: through the memory of `process`, so that its pages are charged to the
/// container, with its content. `process` must have room for all of it for that moment.
Status MakeSharedObject(RestoredProcess& process, const ImageSource& source, SharedObject& object,
                        const std::function<void(std::uint64_t)>& on_pages);

/// Maps areas into one process.
class AreaMapper {
 public:
  /// Opens file `id` in the process with `flags`.
  using OpenFile = std::function<Result<int>(std::uint32_t id, int flags)>;

  AreaMapper(RestoredProcess& process, SharedObjects& objects, const SegmentRestorer& segments,
             OpenFile open_file)
      : process_(process),
        objects_(objects),
        segments_(segments),
        open_file_(std::move(open_file)) {}

  /// Maps `area` with its final protection and advice, without the content that is only its own: all of it
  /// is there after Finish(). A shared object must have been made.
  Status Map(const AreaImage& area);
  /// Makes what is left to be made, and closes what is still open in the process.
  Status Finish();

 private:
  Result<int> DescriptorOf(const AreaImage& area);
  Result<int> SendObject(const AreaImage& area);
  Result<int> OpenFileOf(const AreaImage& area);
  Status CloseDescriptor();
  void AddAnonymous(const AreaImage& area);
  void AddAdvice(const AreaImage& area);
  Status MapPending();
  Status MapParts();

  RestoredProcess& process_;
  SharedObjects& objects_;
  const SegmentRestorer& segments_;
  OpenFile open_file_;
  std::optional<FdChannel> channel_;
  /// What is open in the process, and an area that it was opened for: the areas of a library follow each
  /// other, and share one struct file as they did when the loader made them.
  int descriptor_ = -1;
  AreaImage descriptor_area_;
  std::vector<AreaImage> parts_;  // of System V segments
  CallBatch pending_;             // for areas that need no descriptor, and advice for all
};

/// Guard pages and locks, which must wait for the content. A lock that the process may not have any more
/// becomes a sentence in `notes`.
Status FinishAreas(RestoredProcess& process, const MemoryLayout& layout,
                   std::vector<std::string>& notes);

}  // namespace stasis::engine
