// Bytes most of which are zero, kept in little room.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace stasis::engine {

class PackedBytes {
 public:
  PackedBytes() = default;
  /// Keeps `bytes`; eight at a time where all of them are zero take no room.
  explicit PackedBytes(std::span<const std::byte> bytes);

  std::vector<std::byte> Unpack() const;
  std::size_t size() const { return size_; }  ///< Unpacked.
  bool empty() const { return size_ == 0; }

 private:
  std::size_t size_ = 0;
  std::vector<std::byte> runs_;  // a Run, then its words; the last word may be cut
};

}  // namespace stasis::engine
