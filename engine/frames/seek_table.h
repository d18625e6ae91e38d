// Zstandard's seekable format: ordinary frames, one behind the other, and at the end a table of their
// sizes in a skippable frame, which every decoder passes over.
// Source: RFC 8878 (frames); zstd's "Zstandard Seekable Format" 0.1.0 (the table).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::frames {

/// What a reader of single frames holds in memory at once is a multiple of this.
inline constexpr std::uint64_t kMaxFrameBytes = std::uint64_t{8} << 20;

/// One frame, as the table has it.
struct FrameSizes {
  std::uint32_t stored = 0;  ///< In the file.
  std::uint32_t plain = 0;   ///< Of its content; 0 for a skippable frame.
};

/// The skippable frame that goes behind the last of `frames`.
std::string EncodeSeekTable(std::span<const FrameSizes> frames);

class SeekTable {
 public:
  struct Frame {
    std::uint64_t stored_offset;  ///< In the file.
    std::uint64_t stored_size;
    std::uint64_t plain_offset;
    std::uint64_t plain_size;
  };

  /// The table at the end of `fd`, a file of `file_size` bytes. Unset: there is none, or its frames
  /// are too large to be read one at a time. DataLoss: it contradicts itself or the file.
  /// ResourceExhausted: over `max_plain_bytes` of content.
  static Result<std::optional<SeekTable>> Read(int fd, std::uint64_t file_size,
                                               std::uint64_t max_plain_bytes);

  std::uint64_t plain_size() const { return points_.back().plain; }
  /// The frame with byte `plain_offset`, which lies below plain_size().
  std::size_t Find(std::uint64_t plain_offset) const;
  Frame At(std::size_t index) const;

 private:
  struct Point {
    std::uint64_t stored;
    std::uint64_t plain;
  };
  SeekTable() = default;
  Status TakeEntries(std::span<const std::byte> entries, std::size_t entry_bytes);

  std::vector<Point> points_;  // where each frame begins, and where the last one ends
  bool too_large_ = false;
};

}  // namespace stasis::frames
