#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

/// The memory of a process as its page map and page file hold it.
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
    std::uint64_t offset;  ///< In the page file.
  };

  explicit ProcessMemory(const engine::ImageSource& images) : images_(images) {}

  const engine::ImageSource& images_;
  std::string pages_name_;
  std::vector<Run> runs_;
  std::uint64_t saved_bytes_ = 0;
};

}  // namespace stasis::archive
