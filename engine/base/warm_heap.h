// Room in the heap that is there before it is needed.
#pragma once

#include <cstddef>
#include <memory>

namespace stasis {

/// Some `bytes` of the calling thread's heap that the kernel has given already: for as long as it lives,
/// what is allocated there does not wait for one page fault after the other.
class WarmHeap {
 public:
  WarmHeap() = default;
  explicit WarmHeap(std::size_t bytes);

 private:
  // Behind the room, so that it is not at the heap's end, which malloc(3) gives back (M_TRIM_THRESHOLD).
  std::unique_ptr<std::byte[]> end_;
};

}  // namespace stasis
