// Compresses a stream into zstd frames that can be read one at a time, on several threads: the workers of a ring compress
// a buffer each, to a frame, and who writes the stream writes what is compressed to the file, in order.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "archive/hashed_ring.h"
#include "engine/base/status.h"
#include "engine/frames/seek_table.h"

namespace stasis::archive {

class FrameWriter {
 public:
  /// Content of a frame, at most. Larger ones compress hardly better, and a single page costs a whole frame.
  static constexpr std::size_t kFrameBytes = HashedRing::kBytes;
  /// Content of a frame that can be rewritten.
  static constexpr std::size_t kRawBytes = 512;

  /// `fd` is empty and outlives the writer. `level` is one of zstd's.
  FrameWriter(int fd, int level);
  FrameWriter(const FrameWriter&) = delete;
  FrameWriter& operator=(const FrameWriter&) = delete;

  Status Write(std::span<const std::byte> bytes);
  Status Fill(std::uint64_t size, const engine::ReadPiece& read, const engine::PassedOn& passed_on);
  Status AwaitFilled() { return ring_.AwaitFilled(); }
  /// Writes `bytes` as they are, as a frame of their own and so that the next begins behind them.
  Status WriteRaw(std::span<const std::byte, kRawBytes> bytes);
  /// Replaces what WriteRaw wrote at `offset` of the content.
  Status Rewrite(std::uint64_t offset, std::span<const std::byte, kRawBytes> bytes);

  void BeginMember() { ring_.BeginMember(); }
  void EndMember() { ring_.EndMember(); }
  /// MemberDigest of what was written between the two, for each time.
  Result<std::vector<std::string>> Digests() { return ring_.Digests(); }

  /// Writes the rest, and the table of all frames.
  Status Finish();

  std::uint64_t plain_bytes() const { return ring_.bytes(); }
  std::uint64_t stored_bytes() const { return stored_bytes_; }
  /// That was spent on compression, so far.
  std::chrono::nanoseconds cpu() const;

 private:
  enum Kind { kCompressed, kRaw };
  struct Frame {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0;
  };

  HashedRing::Work MakeCompressor();
  Status WriteOut(const HashedRing::Buffer& buffer);

  const int fd_;
  const int level_;
  std::vector<Frame> made_;  // by slot of the ring
  std::uint64_t stored_bytes_ = 0;
  std::vector<frames::FrameSizes> frames_;
  std::unordered_map<std::uint64_t, std::uint64_t> raw_places_;  // by offset in the content
  mutable std::mutex mutex_;
  std::chrono::nanoseconds cpu_{};  // guarded by mutex_
  HashedRing ring_;                 // the last, as its threads use the rest
};

}  // namespace stasis::archive
