// Source  madvise(2); mm/userfaultfd.c, mfill_atomic_pte_copy(); tested on 6.18
// Rule    MADV_POPULATE_READ (Linux 5.14) maps pages of a file, and reads them first where they are not cached.
//         UFFDIO_COPY takes what is mapped with one lookup; for each page that is not, it lets go of its lock and
//         begins anew.
// Rule    A fault maps what is cached of the 64 KiB around it, too (do_fault_around() in mm/memory.c): of small parts that
//         are let go by themselves most would stay.
#include "engine/memory/mapped_image.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

#include "engine/memory/page_size.h"

namespace stasis::engine {
namespace {

constexpr std::uintptr_t kAroundBytes = 64 << 10;  // fault_around_bytes in mm/memory.c
constexpr std::size_t kLeastPartBytes = 64 << 10;  // less is read sooner than mapped and let go
constexpr std::uint64_t kLeastBytes = std::uint64_t{1} << 20;  // a mapping costs some system calls

}  // namespace

MappedImage::MappedImage(const ImageSource& source, const std::string& name) {
  const std::uint64_t size = source.Size(name).value_or(0);
  if (size < kLeastBytes) return;
  const Result<ImagePlace> place = source.Locate(name);
  if (!place.ok() || place->compressed) return;
  const std::uint64_t skipped = place->offset & ~(kPageBytes - 1);
  begin_ = place->offset - skipped;
  void* const memory = ::mmap(nullptr, begin_ + size, PROT_READ, MAP_SHARED, place->fd.get(),
                              static_cast<off_t>(skipped));
  if (memory != MAP_FAILED) mapping_ = {static_cast<std::byte*>(memory), begin_ + size};
}

MappedImage::~MappedImage() {
  if (!mapping_.empty()) ::munmap(mapping_.data(), mapping_.size());
}

std::span<const std::byte> MappedImage::Get(std::uint64_t offset, std::size_t size) const {
  if (size < kLeastPartBytes) return {};
  const std::uint64_t first = begin_ + offset;
  if (first % kPageBytes != 0 || first > mapping_.size() || size > mapping_.size() - first) {
    return {};
  }
  const std::span<std::byte> part = mapping_.subspan(first, size);
  if (::madvise(part.data(), part.size(), MADV_POPULATE_READ) != 0) return {};
  return part;
}

void MappedImage::Forget(std::span<const std::byte> part) const {
  const auto address = reinterpret_cast<std::uintptr_t>(mapping_.data());
  const auto begin = address + static_cast<std::uintptr_t>(part.data() - mapping_.data());
  const std::uintptr_t first = std::max(begin & ~(kAroundBytes - 1), address);
  const std::uintptr_t end = (begin + part.size() + kAroundBytes - 1) & ~(kAroundBytes - 1);
  const std::size_t size = std::min(end, address + mapping_.size()) - first;
  ::madvise(mapping_.data() + (first - address), size, MADV_DONTNEED);
}

}  // namespace stasis::engine
