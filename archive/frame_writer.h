// Compresses a stream into zstd frames that can be read one at a time, on several threads.
//
//     caller      fills a buffer of 1 MiB; writes what is compressed to the file, in order
//     workers     compress a buffer each, to a frame
//     hasher      hashes the members that lie in the buffers
//
// Memory is bounded by a ring of few buffers: who fills it waits for its oldest.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/base/status.h"
#include "engine/frames/seek_table.h"

namespace stasis::archive {

class FrameWriter {
 public:
  /// Content of a frame. Larger ones compress hardly better, and a single page costs a whole frame.
  static constexpr std::size_t kFrameBytes = std::size_t{1} << 20;
  /// Content of a frame that can be rewritten.
  static constexpr std::size_t kRawBytes = 512;

  /// `fd` is empty and outlives the writer. `level` is one of zstd's.
  FrameWriter(int fd, int level);
  FrameWriter(const FrameWriter&) = delete;
  FrameWriter& operator=(const FrameWriter&) = delete;
  ~FrameWriter();

  Status Write(std::span<const std::byte> bytes);
  /// Writes `bytes` as they are, as a frame of their own and so that the next begins behind them.
  Status WriteRaw(std::span<const std::byte, kRawBytes> bytes);
  /// Replaces what WriteRaw wrote at `offset` of the content.
  Status Rewrite(std::uint64_t offset, std::span<const std::byte, kRawBytes> bytes);

  void BeginMember();
  void EndMember();
  /// SHA-256 of what was written between the two, for each time.
  Result<std::vector<std::string>> Digests();

  /// Writes the rest, and the table of all frames.
  Status Finish();

  std::uint64_t plain_bytes() const { return plain_bytes_; }
  std::uint64_t stored_bytes() const { return stored_bytes_; }
  /// That was spent on compression, so far.
  std::chrono::nanoseconds cpu() const;

 private:
  struct Piece {  // of a member, in one buffer
    std::size_t begin;
    std::size_t end;
    bool last;
  };
  struct Slot {
    std::unique_ptr<std::byte[]> plain;
    std::unique_ptr<std::byte[]> stored;
    std::size_t plain_size = 0;
    std::size_t stored_size = 0;
    std::uint64_t plain_offset = 0;
    bool raw = false;
    bool compressed = false;  // guarded by mutex_, like the next
    bool hashed = false;
    std::vector<Piece> pieces;
    Status status;
  };

  Status Begin();   // current_ is a free slot
  Status Submit();  // current_ goes on its way
  Status Flush();
  Status WriteOldest();
  Piece& LatestPiece();
  bool OldestIsReady() const;
  void Compress();
  void Hash();
  Slot& At(std::uint64_t number) { return slots_[number % slots_.size()]; }

  const int fd_;
  const int level_;
  std::vector<Slot> slots_;
  Slot* current_ = nullptr;  // the caller's, being filled
  bool in_member_ = false;
  std::uint64_t plain_bytes_ = 0;
  std::uint64_t stored_bytes_ = 0;
  std::uint64_t written_ = 0;  // slots that are free again
  std::vector<frames::FrameSizes> frames_;
  std::unordered_map<std::uint64_t, std::uint64_t> raw_places_;  // by offset in the content

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::uint64_t submitted_ = 0;  // guarded by mutex_, like the rest; numbers of slots
  std::uint64_t taken_ = 0;      // by workers
  bool stop_ = false;
  std::chrono::nanoseconds cpu_{};
  std::vector<std::string> digests_;
  std::vector<std::jthread> threads_;
};

}  // namespace stasis::archive
