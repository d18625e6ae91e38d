// Rule    process_vm_readv(2) honours the protection of the area and stops at the first piece that
//         it may not read; /proc/PID/mem reads it for a tracer (FOLL_FORCE).
// Rule    It takes UIO_MAXIOV (1024) pieces at once.
// Rule    It pins what it reads, and a page that waits to be copied on write is copied for that
//         (gup_must_unshare() in mm/gup.c): parent and child would need twice the memory from then
//         on. /proc/PID/mem does not pin; it is slower (4.7 GB/s, not 6.5).
#include "engine/memory/page_copy.h"

#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/base/io.h"
#include "engine/image/image_file.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kMaxPieces = 1024;

// The last page of an object ends with zeros where the object ends within it.
Status ReadPadded(int fd, std::span<std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "read a memory object");
    }
    if (got == 0) break;
    bytes = bytes.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  std::ranges::fill(bytes, std::byte{0});
  return OkStatus();
}

// What cannot be read is zeros, page by page.
void ReadWhatIsThere(int fd, std::span<std::byte> bytes, std::uint64_t offset) {
  if (ReadExactAt(fd, bytes, offset).ok()) return;
  while (!bytes.empty()) {
    const auto page = bytes.first(std::min<std::size_t>(bytes.size(), kPageBytes));
    if (!ReadExactAt(fd, page, offset).ok()) std::ranges::fill(page, std::byte{0});
    bytes = bytes.subspan(page.size());
    offset += page.size();
  }
}

}  // namespace

// What one call reads.
struct PageReader::Pieces {
  std::vector<iovec> all;
  std::size_t bytes = 0;
  bool copied_on_write = false;  // all of them
};

void PageReader::Add(PageRange pages, bool copied_on_write) {
  if (pages.start == pages.end) return;
  runs_.push_back({.offset = size_, .start = pages.start, .copied_on_write = copied_on_write});
  size_ += pages.end - pages.start;
}

Status PageReader::ReadAt(std::uint64_t offset, std::span<std::byte> target) const {
  auto run = std::ranges::upper_bound(runs_, offset, {}, &Run::offset) - 1;
  while (!target.empty()) {
    Pieces pieces;
    pieces.copied_on_write = run->copied_on_write;
    while (pieces.bytes < target.size() && pieces.all.size() < kMaxPieces &&
           run->copied_on_write == pieces.copied_on_write) {
      const std::uint64_t end = run + 1 == runs_.end() ? size_ : (run + 1)->offset;
      const auto size = std::min<std::uint64_t>(end - offset, target.size() - pieces.bytes);
      pieces.all.push_back({reinterpret_cast<void*>(run->start + (offset - run->offset)), size});
      pieces.bytes += size;
      offset += size;
      if (offset < end || offset == size_) break;
      ++run;
    }
    RETURN_IF_ERROR(Read(pieces, target.first(pieces.bytes)));
    target = target.subspan(pieces.bytes);
  }
  return OkStatus();
}

Status PageReader::ReadOne(std::span<std::byte> bytes, std::uint64_t offset) const {
  switch (source_.kind) {
    case PageSource::Kind::kFrozen:
      return ReadExactAt(source_.fd, bytes, offset);
    case PageSource::Kind::kRunning:
      ReadWhatIsThere(source_.fd, bytes, offset);
      return OkStatus();
    case PageSource::Kind::kObject:
      return ReadPadded(source_.fd, bytes, offset);
  }
  return Internal("no such source of pages");
}

Status PageReader::Read(const Pieces& pieces, std::span<std::byte> target) const {
  std::size_t done = 0;
  if (source_.kind == PageSource::Kind::kFrozen && !pieces.copied_on_write) {
    const iovec local = {target.data(), target.size()};
    const ssize_t got =
        ::process_vm_readv(source_.pid, &local, 1, pieces.all.data(), pieces.all.size(), 0);
    done = got > 0 ? static_cast<std::size_t>(got) : 0;
  }
  std::size_t begin = 0;
  for (const iovec& piece : pieces.all) {
    const std::size_t end = begin + piece.iov_len;
    if (done < end) {
      const std::size_t skip = std::max(done, begin) - begin;
      const auto offset = reinterpret_cast<std::uint64_t>(piece.iov_base) + skip;
      const auto rest = target.subspan(begin + skip, piece.iov_len - skip);
      RETURN_IF_ERROR(Annotate(ReadOne(rest, offset), "read memory at " + std::to_string(offset)));
    }
    begin = end;
  }
  return OkStatus();
}

ImageContent FileOf(std::uint32_t pages_id, PageReader reader) {
  const std::uint64_t size = reader.size();
  return {.name = ImageName("pages", pages_id),
          .size = size,
          .read = [reader = std::move(reader)](std::uint64_t offset, std::span<std::byte> target) {
            return reader.ReadAt(offset, target);
          }};
}

}  // namespace stasis::engine
