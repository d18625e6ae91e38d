// The pages of one address space that are still in the images.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace stasis::engine::pages {

inline constexpr std::uint64_t kPageBytes = 4096;

/// Pages that follow each other in memory and in a file.
struct PendingRun {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint32_t file = 0;
  std::uint64_t offset = 0;  ///< In the file, of `start`.
};

/// All addresses are multiples of the page size, and ranges do not include their end.
class PendingPages {
 public:
  /// False, and nothing is added, where a page of it is pending already, or it is empty.
  bool Add(const PendingRun& run);
  bool empty() const { return runs_.empty(); }
  std::uint64_t bytes() const { return bytes_; }

  /// From the page of `address` on, as far as pages follow it; nothing when that is not pending.
  std::optional<PendingRun> At(std::uint64_t address) const;
  /// The first run that ends after `address`, from there on; nothing when there is none.
  std::optional<PendingRun> From(std::uint64_t address) const;

  void Remove(std::uint64_t start, std::uint64_t end);
  /// What is pending in `size` bytes from `from` on is pending from `to` on instead, and only that.
  void Move(std::uint64_t from, std::uint64_t to, std::uint64_t size);

 private:
  struct Rest {
    std::uint64_t end;
    std::uint32_t file;
    std::uint64_t offset;
  };
  std::map<std::uint64_t, Rest> runs_;  // by start
  std::uint64_t bytes_ = 0;
};

}  // namespace stasis::engine::pages
