// Source  madvise(2); mm/userfaultfd.c, mfill_atomic_pte_copy(); tested on 6.18
// Rule    MADV_POPULATE_READ (Linux 5.14) maps pages of a file, and reads them first where they are not cached.
//         UFFDIO_COPY takes what is mapped with one lookup; for each page that is not, it lets go of its lock and
//         begins anew.
#include "engine/memory/mapped_image.h"

#include <sys/mman.h>

#include "engine/memory/page_size.h"

namespace stasis::engine {
namespace {

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
  const std::uint64_t first = begin_ + offset;
  if (first % kPageBytes != 0 || first > mapping_.size() || size > mapping_.size() - first) {
    return {};
  }
  const std::span<std::byte> part = mapping_.subspan(first, size);
  if (::madvise(part.data(), part.size(), MADV_POPULATE_READ) != 0) return {};
  return part;
}

void MappedImage::Forget(std::span<const std::byte> part) {
  ::madvise(const_cast<std::byte*>(part.data()), part.size(), MADV_DONTNEED);
}

}  // namespace stasis::engine
