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

PageCopier::PageCopier(const PageSource& source, const PageBuffer& buffer, Take take)
    : source_(source), take_(std::move(take)), buffer_(buffer.bytes()) {}

PageCopier::PageCopier(const PageSource& source, std::span<std::byte> target)
    : source_(source), take_(), buffer_(target) {}

Status PageCopier::Add(PageRange pages, bool copied_on_write) {
  if (copied_on_write != copied_on_write_) RETURN_IF_ERROR(Flush());
  copied_on_write_ = copied_on_write;
  while (pages.start < pages.end) {
    const auto size = std::min<std::uint64_t>(pages.end - pages.start, buffer_.size() - used_);
    pieces_.push_back({reinterpret_cast<void*>(pages.start), size});
    used_ += size;
    pages.start += size;
    if (used_ == buffer_.size() || pieces_.size() == kMaxPieces) RETURN_IF_ERROR(Flush());
  }
  return OkStatus();
}

Status PageCopier::Flush() {
  if (used_ == 0) return OkStatus();
  RETURN_IF_ERROR(Fill());
  const std::size_t size = std::exchange(used_, 0);
  pieces_.clear();
  if (take_) return take_(buffer_.first(size));
  buffer_ = buffer_.subspan(size);
  return OkStatus();
}

Status PageCopier::Read(std::span<std::byte> bytes, std::uint64_t offset) const {
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

Status PageCopier::Fill() {
  std::size_t done = 0;
  if (source_.kind == PageSource::Kind::kFrozen && !copied_on_write_) {
    const iovec local = {buffer_.data(), used_};
    const ssize_t got =
        ::process_vm_readv(source_.pid, &local, 1, pieces_.data(), pieces_.size(), 0);
    done = got > 0 ? static_cast<std::size_t>(got) : 0;
  }
  std::size_t begin = 0;
  for (const iovec& piece : pieces_) {
    const std::size_t end = begin + piece.iov_len;
    if (done < end) {
      const std::size_t skip = std::max(done, begin) - begin;
      const auto offset = reinterpret_cast<std::uint64_t>(piece.iov_base) + skip;
      const auto rest = buffer_.subspan(begin + skip, piece.iov_len - skip);
      RETURN_IF_ERROR(Annotate(Read(rest, offset), "read memory at " + std::to_string(offset)));
    }
    begin = end;
  }
  return OkStatus();
}

}  // namespace stasis::engine
