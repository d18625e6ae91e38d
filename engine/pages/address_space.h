// The memory of one process that is loaded while it runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/frames/framed_file.h"
#include "engine/pages/pending_pages.h"

namespace stasis::engine::pages {

/// A pages file: `offset` bytes into what `fd` reads, or into the content of `framed`.
struct PagesFile {
  UniqueFd fd;
  std::uint64_t offset = 0;
  std::shared_ptr<const frames::FramedFile> framed = {};

  Status ReadAt(std::span<std::byte> bytes, std::uint64_t at) const;
};

class AddressSpace {
 public:
  /// `uffd` is nonblocking, with the events of kWantedFeatures.
  AddressSpace(UniqueFd uffd, PendingPages pending)
      : uffd_(std::move(uffd)), pending_(std::move(pending)) {}

  int fd() const { return uffd_.get(); }
  /// Nothing is left to do: closing the userfaultfd takes no content from it.
  bool done() const { return gone_ || (pending_.empty() && faults_.empty()); }
  bool has_faults() const { return !gone_ && !faults_.empty(); }
  std::uint64_t pending_bytes() const { return gone_ ? 0 : pending_.bytes(); }

  /// Takes in all that happened to it. `on_fork` gets the address spaces of its new children.
  Status ReadEvents(const std::function<void(AddressSpace)>& on_fork);
  /// Gives waiting threads their pages. ReadEvents comes between two calls.
  Status ServeFaults(std::span<const PagesFile> files);
  /// Loads the next piece in address order.
  Status LoadNext(std::span<const PagesFile> files);

 private:
  enum class Outcome { kDone, kAgain };
  static constexpr std::uint64_t kNowhere = ~std::uint64_t{0};

  Result<Outcome> Serve(std::span<const PagesFile> files, std::uint64_t address);
  Result<Outcome> Load(std::span<const PagesFile> files, PendingRun run);
  Result<Outcome> Refused(int error, std::uint64_t address);
  Status Wake(std::uint64_t address);

  UniqueFd uffd_;
  PendingPages pending_;
  std::deque<std::uint64_t> faults_;  // addresses that threads wait for
  std::uint64_t next_ = 0;            // where the background is
  std::uint64_t absent_ = kNowhere;   // where no area was, the last time
  int shortages_ = 0;                 // in a row
  bool gone_ = false;
};

/// UFFD_FEATURE_EVENT_*: without one of them, pages would come where the program wants none.
extern const std::uint64_t kWantedFeatures;

}  // namespace stasis::engine::pages
