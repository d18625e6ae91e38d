// Memory that comes while the restored program runs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// The areas of a process that may be filled later, and what is in them.
struct LazyPlan {
  std::vector<AddressRange> areas;  ///< Whole, by rising address.
  PageSet later;
  PageSet
      at_once;  ///< All other pages, and in the same areas those that its threads need to start.

  bool empty() const { return areas.empty(); }
};

/// What of `pages` may come later: of private anonymous memory, what the image says may. `inherited`: areas
/// that it has in common with its parent.
LazyPlan PlanLazyPages(const MemoryLayout& layout, const PageSet& pages,
                       const std::vector<AddressRange>& inherited);

/// The page server of one restore: a process of its own (pages/main.cc), which outlives us. It serves from
/// the start, so whatever touches lazy memory during the restore waits until that is there.
class LazyPages {
 public:
  /// Runs `program`. FailedPrecondition: this kernel, or who we are, cannot have it.
  static Result<LazyPages> Start(const std::string& program, const ImageSource& source);

  /// Hands what comes later in `process`, whose areas are mapped and have nothing at those places, to the
  /// server.
  Status Register(RestoredProcess& process, const LazyPlan& plan);
  /// The programs are about to run. Unavailable: the server has ended, and they must not.
  Status Begin();

  std::uint64_t bytes() const { return bytes_; }

 private:
  LazyPages(const ImageSource& source, UniqueFd device, UniqueFd socket)
      : source_(&source), device_(std::move(device)), socket_(std::move(socket)) {}
  Result<UniqueFd> MakeUserfaultfd(RestoredProcess& process) const;
  Result<std::uint32_t> SendFile(const std::string& name);

  const ImageSource* source_;
  UniqueFd device_;                 // /dev/userfaultfd
  UniqueFd socket_;                 // to the server
  std::vector<std::string> files_;  // that the server has
  std::uint64_t bytes_ = 0;
};

}  // namespace stasis::engine
