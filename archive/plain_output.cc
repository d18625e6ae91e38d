// The bulk goes to the disk past the page cache (O_DIRECT): a copy less, and the node's cache stays what its workloads
// made of it. What a container stands still for, or changes meanwhile, goes through the cache, which takes it faster
// than a disk.
//
// Rule    Through the cache and past it may be written at once, if never to the same page of the file: who writes
//         past it writes back and drops the cached pages of just that range (open(2), NOTES on O_DIRECT;
//         kiocb_invalidate_pages() in mm/filemap.c). So only whole pages of one buffer go past it.
// Source  open(2), statx(2): offset, length and memory are multiples of what STATX_DIOALIGN tells.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <string>

#include "archive/hashed_ring.h"
#include "archive/tar_output.h"
#include "archive/write_at.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {
namespace {

constexpr std::uint64_t kPage = HashedRing::kAlignment;
// Files grow by so much at a time: a write past the cache that makes its file longer waits for all others
// (ext4_dio_write_checks() in fs/ext4/file.c).
constexpr off_t kAllocation = off_t{16} << 20;
// Two that read memory, and one that waits for the disk.
constexpr HashedRing::Shape kShape = {.buffers = 5, .workers = 3};

/// `fd`'s file, opened to write past the page cache; none where that cannot be in pages.
UniqueFd OpenDirect(int fd) {
  struct statx file = {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &file) != 0 ||
      (file.stx_mask & STATX_DIOALIGN) == 0) {
    return {};  // before Linux 6.1, or a file system that does not tell
  }
  const auto fits = [](std::uint32_t alignment) {
    return alignment != 0 && kPage % alignment == 0;
  };
  if (!fits(file.stx_dio_mem_align) || !fits(file.stx_dio_offset_align)) return {};
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return UniqueFd(::open(path.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
}

class PlainOutput : public TarOutput {
 public:
  explicit PlainOutput(int fd) : fd_(fd), direct_(OpenDirect(fd)), use_direct_(bool{direct_}) {}

  Status Write(std::span<const std::byte> bytes) override { return ring_.Write(bytes); }

  Status Fill(std::uint64_t size, const engine::ReadPiece& read,
              const engine::PassedOn& passed_on) override {
    return ring_.Fill(size, read, passed_on);
  }
  Status AwaitFilled() override { return ring_.AwaitFilled(); }

  Status WriteHeader(const TarHeader& header) override {
    return Write(std::as_bytes(std::span(&header, 1)));
  }

  // A container that stands still must not wait for the disk: what the old header is still on its way in, is put anew
  // at the end.
  Status PutHeader(std::uint64_t position, const TarHeader& header) override {
    if (position + sizeof(header) <= ring_.done_bytes()) {
      late_headers_.erase(position);
      return WriteAllAt(fd_, std::as_bytes(std::span(&header, 1)), position);
    }
    late_headers_[position] = header;
    return OkStatus();
  }

  void BeginMember() override { ring_.BeginMember(); }
  void EndMember() override { ring_.EndMember(); }
  Result<std::vector<std::string>> Digests() override { return ring_.Digests(); }

  Status Finish() override {
    RETURN_IF_ERROR(ring_.Flush());
    for (const auto& [position, header] : late_headers_) {
      RETURN_IF_ERROR(WriteAllAt(fd_, std::as_bytes(std::span(&header, 1)), position));
    }
    if (allocated_ > 0 && ::ftruncate(fd_, static_cast<off_t>(ring_.bytes())) != 0) {
      return SyscallError(errno, "set the size");
    }
    return OkStatus();
  }
  std::uint64_t file_bytes() const override { return ring_.bytes(); }
  void Hurry(bool hurried) override {
    hurried_ = hurried;
    SetKind();
  }
  void BeginIncrement() override {
    is_increment_ = true;
    SetKind();
  }

 private:
  enum Kind { kDirect, kCached };

  void SetKind() {
    // What it says the next call says, too.
    (void)ring_.SetKind(hurried_ || is_increment_ ? kCached : kDirect);
  }

  Status WriteBuffer(const HashedRing::Buffer& buffer) {
    if (buffer.kind == kCached || !use_direct_) {
      RETURN_IF_ERROR(WriteAllAt(fd_, buffer.content, buffer.offset));
      // The disk gets to work now, so that the fsync at the end has little left to wait for.
      ::sync_file_range(fd_, static_cast<off_t>(buffer.offset),
                        static_cast<off_t>(buffer.content.size()), SYNC_FILE_RANGE_WRITE);
      return OkStatus();
    }
    const std::size_t before = std::min<std::size_t>(-buffer.offset % kPage, buffer.content.size());
    const std::size_t pages = (buffer.content.size() - before) / kPage * kPage;
    RETURN_IF_ERROR(WriteAllAt(fd_, buffer.content.first(before), buffer.offset));
    RETURN_IF_ERROR(WriteDirect(buffer.content.subspan(before, pages), buffer.offset + before));
    return WriteAllAt(fd_, buffer.content.subspan(before + pages), buffer.offset + before + pages);
  }

  // What the file system does not take this way after all goes through the cache, as everything does then.
  Status WriteDirect(std::span<const std::byte> bytes, std::uint64_t offset) {
    AllocateUpTo(offset + bytes.size());
    while (!bytes.empty()) {
      const ssize_t put =
          ::pwrite(direct_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0 && errno != EINVAL) return SyscallError(errno, "write");
      const auto taken = static_cast<std::size_t>(std::max<ssize_t>(put, 0));
      if (put < 0) use_direct_ = false;
      if (put < 0 || taken % kPage != 0)
        return WriteAllAt(fd_, bytes.subspan(taken), offset + taken);
      bytes = bytes.subspan(taken);
      offset += taken;
    }
    return OkStatus();
  }

  // What it can not do here the writes say, or do without.
  void AllocateUpTo(std::uint64_t end) {
    const std::lock_guard lock(mutex_);
    while (allocated_ < end) {
      if (::fallocate(fd_, 0, static_cast<off_t>(allocated_), kAllocation) != 0) return;
      allocated_ += kAllocation;
    }
  }

  const int fd_;
  std::mutex mutex_;
  std::uint64_t allocated_ = 0;  // guarded by mutex_
  const UniqueFd direct_;
  std::atomic<bool> use_direct_;
  bool hurried_ = false;
  bool is_increment_ = false;
  std::map<std::uint64_t, TarHeader> late_headers_;  // by their positions
  HashedRing ring_{
      kShape,
      [this] { return [this](const HashedRing::Buffer& buffer) { return WriteBuffer(buffer); }; },
      [](const HashedRing::Buffer&) { return OkStatus(); }};
};

}  // namespace

std::unique_ptr<TarOutput> MakePlainOutput(int fd) { return std::make_unique<PlainOutput>(fd); }

}  // namespace stasis::archive
