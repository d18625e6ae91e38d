// Image files that a system call reads from without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "engine/image/image_io.h"

namespace stasis::engine {

class MappedImage {
 public:
  /// Image file `name`; one that cannot be mapped gives nothing.
  MappedImage(const ImageSource& source, const std::string& name);
  MappedImage(MappedImage&& other) noexcept
      : mapping_(std::exchange(other.mapping_, {})), begin_(other.begin_) {}
  MappedImage& operator=(MappedImage&&) = delete;
  ~MappedImage();

  /// `size` bytes from `offset`, for system calls alone: where the file has become shorter by then, these say EFAULT,
  /// and a process that looks is killed. Nothing where they cannot be had so, or are so few
  /// that to read them is sooner done. By several threads, of different parts.
  std::span<const std::byte> Get(std::uint64_t offset, std::size_t size) const;
  /// The part is not needed any more: what is mapped counts as our memory.
  void Forget(std::span<const std::byte> part) const;

 private:
  std::span<std::byte> mapping_;
  std::uint64_t begin_ = 0;  // of the image file in it
};

}  // namespace stasis::engine
