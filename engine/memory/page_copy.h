// Many runs of pages, read with few system calls.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/memory/page_map.h"

namespace stasis::engine {

/// Where pages are read from.
struct PageSource {
  enum class Kind {
    kFrozen,  ///< A process that stands still: `pid`, and its /proc/PID/mem for what it may not read itself.
    kRunning,  ///< The /proc/PID/mem of one that runs: what is not there any more reads as zeros.
    kObject,   ///< A file: what is behind its end reads as zeros.
  };
  Kind kind;
  int fd;  ///< Outlives the copier.
  pid_t pid = 0;
};

/// Room for what is on its way; many copiers use it one after another. What is read stays in the processor's cache
/// until it is written on.
class PageBuffer {
 public:
  static constexpr std::size_t kBytes = std::size_t{1} << 20;
  std::span<std::byte> bytes() const { return {bytes_.get(), kBytes}; }

 private:
  std::unique_ptr<std::byte[]> bytes_ = std::make_unique_for_overwrite<std::byte[]>(kBytes);
};

/// Gathers pieces of a source in a buffer and hands it on whenever that is full.
class PageCopier {
 public:
  using Take = std::function<Status(std::span<const std::byte>)>;

  PageCopier(const PageSource& source, const PageBuffer& buffer, Take take);
  /// Fills `target`, which has room for all, and hands nothing on.
  PageCopier(const PageSource& source, std::span<std::byte> target);

  /// `copied_on_write`: the process may have them in common with its parent or children.
  Status Add(PageRange pages, bool copied_on_write);
  /// Hands on what is left.
  Status Flush();

 private:
  Status Fill();
  Status Read(std::span<std::byte> bytes, std::uint64_t offset) const;

  const PageSource source_;
  Take take_;
  std::span<std::byte> buffer_;
  std::vector<iovec> pieces_;
  std::size_t used_ = 0;
  bool copied_on_write_ = false;  // of all pieces
};

}  // namespace stasis::engine
