#include "engine/base/warm_heap.h"

#include <malloc.h>

#include <utility>
#include <vector>

namespace stasis {

namespace {

// What is larger gets a mapping of its own, and is given back whole. By itself the limit rises with what was freed,
// mallopt(3): of ten thousand threads some MB would stay.
void LimitHeap() { [[maybe_unused]] static const int kOnce = ::mallopt(M_MMAP_THRESHOLD, 1 << 20); }

}  // namespace

WarmHeap::WarmHeap(std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kBlock = 64 << 10;  // far below that limit
  LimitHeap();
  std::vector<std::unique_ptr<std::byte[]>> blocks;
  for (std::size_t size = 0; size < bytes; size += kBlock) {
    std::byte* const block =
        blocks.emplace_back(std::make_unique_for_overwrite<std::byte[]>(kBlock)).get();
    for (std::size_t at = 0; at < kBlock; at += kPage) {
      *static_cast<volatile std::byte*>(block + at) = std::byte{0};
    }
  }
  if (!blocks.empty()) end_ = std::move(blocks.back());
}

}  // namespace stasis
