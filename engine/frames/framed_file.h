// A file of zstd frames with a seek table, read at any place without being unpacked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/frames/seek_table.h"

namespace stasis::frames {

class FramedFile {
 public:
  /// Null: `fd` has no table of frames that can be read one at a time, and stays the caller's. Else
  /// it is taken. Errors as SeekTable::Read.
  static Result<std::unique_ptr<FramedFile>> Open(UniqueFd& fd, std::uint64_t max_plain_bytes);

  FramedFile(const FramedFile&) = delete;
  FramedFile& operator=(const FramedFile&) = delete;

  int fd() const { return fd_.get(); }
  std::uint64_t plain_size() const { return table_.plain_size(); }

  /// Fills all of `bytes` from `offset` of the content. Safe from several threads, which decompress
  /// at the same time and no frame twice while it is remembered. DataLoss: a frame is damaged, is
  /// not what the table says, or the content ends before.
  Status ReadAt(std::span<std::byte> bytes, std::uint64_t offset) const;

 private:
  struct Content {
    explicit Content(std::size_t frame) : index(frame) {}
    const std::size_t index;
    std::mutex mutex;  // of the two below
    std::unique_ptr<std::byte[]> bytes;
    std::optional<Status> status;  // unset: not read yet
  };

  FramedFile(UniqueFd fd, SeekTable table) : fd_(std::move(fd)), table_(std::move(table)) {}
  std::shared_ptr<Content> Remembered(std::size_t frame) const;
  Status Decompress(const SeekTable::Frame& frame, std::span<std::byte> bytes) const;

  const UniqueFd fd_;
  const SeekTable table_;
  mutable std::mutex mutex_;
  mutable std::list<std::shared_ptr<Content>> recent_;  // guarded by mutex_; latest first
  mutable std::uint64_t recent_bytes_ = 0;              // of them
};

}  // namespace stasis::frames
