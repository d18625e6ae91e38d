#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

/// The memory of a process as its page map and page file hold it, and those of the checkpoints that this one is
/// based on (`parent/`).
class ProcessMemory {
 public:
  /// NotFound: the process has no page map. InvalidArgument, DataLoss: a broken one.
  static Result<ProcessMemory> Open(const engine::ImageSource& images, std::uint32_t pid);

  /// Bytes from `address` on, up to `length` of them or the first page that was not saved.
  Result<std::string> Read(std::uint64_t address, std::uint64_t length) const;

  /// Bytes of pages that were saved.
  std::uint64_t saved_bytes() const { return saved_bytes_; }

 private:
  struct Run {
    std::uint64_t begin;  ///< An address; runs are in rising order.
    std::uint64_t end;
    std::size_t file;      ///< Index in files_.
    std::uint64_t offset;  ///< In that page file.
  };

  explicit ProcessMemory(const engine::ImageSource& images) : images_(images) {}

  static Result<ProcessMemory> OpenAt(const engine::ImageSource& images, const std::string& folder,
                                      const std::string& name);
  void Add(const Run& run);
  void TakeFrom(const ProcessMemory& parent, std::uint64_t begin, std::uint64_t end);

  const engine::ImageSource& images_;
  std::vector<std::string> files_;
  std::vector<Run> runs_;
  std::uint64_t saved_bytes_ = 0;
};

}  // namespace stasis::archive
