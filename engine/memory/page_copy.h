// Many runs of pages, read with few system calls.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
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

/// Runs of pages of a source, one behind the other: any part of that can be read, by several threads at once.
class PageReader {
 public:
  explicit PageReader(const PageSource& source) : source_(source) {}

  /// `copied_on_write`: the process may have them in common with its parent or children.
  void Add(PageRange pages, bool copied_on_write);
  std::uint64_t size() const { return size_; }  ///< Bytes.
  /// Fills `target` from `offset`; both are within size().
  Status ReadAt(std::uint64_t offset, std::span<std::byte> target) const;

 private:
  struct Run {
    std::uint64_t offset;
    std::uint64_t start;
    bool copied_on_write;
  };
  struct Pieces;
  Status Read(const Pieces& pieces, std::span<std::byte> target) const;
  Status ReadOne(std::span<std::byte> bytes, std::uint64_t offset) const;

  const PageSource source_;
  std::vector<Run> runs_;
  std::uint64_t size_ = 0;
};

/// pages-`pages_id`.img with all that `reader` reads.
ImageContent FileOf(std::uint32_t pages_id, PageReader reader);

}  // namespace stasis::engine
