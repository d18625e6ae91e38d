#include "archive/frame_writer.h"

#include <endian.h>
#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "archive/sha256.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

// Each has a context of zstd's, of up to some MiB.
constexpr unsigned kMostWorkers = 4;
// RFC 8878, 3.1.1: magic, descriptor, 2 bytes of content size, 3 of the only block's header.
constexpr std::size_t kRawHeaderBytes = 10;

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};

unsigned WorkerCount() { return std::clamp(std::thread::hardware_concurrency(), 1U, kMostWorkers); }

std::chrono::nanoseconds ThreadCpu() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// A frame of one block that is stored as it is and has no checksum: RFC 8878, 3.1.1.
std::size_t MakeRawFrame(std::span<const std::byte, FrameWriter::kRawBytes> content,
                         std::byte* to) {
  constexpr std::uint8_t kSingleSegmentSizeOf2Bytes = 0x60;
  constexpr std::uint16_t kSize = FrameWriter::kRawBytes - 256;      // so it counts with 2 bytes
  constexpr std::uint32_t kBlock = FrameWriter::kRawBytes << 3 | 1;  // of type 0, raw; the last
  std::array<std::uint8_t, kRawHeaderBytes> header = {};
  const std::uint32_t magic = htole32(ZSTD_MAGICNUMBER);
  std::memcpy(header.data(), &magic, sizeof(magic));
  header[4] = kSingleSegmentSizeOf2Bytes;
  const std::uint16_t size = htole16(kSize);
  std::memcpy(&header[5], &size, sizeof(size));
  const std::uint32_t block = htole32(kBlock);
  std::memcpy(&header[7], &block, 3);
  std::memcpy(to, header.data(), header.size());
  std::memcpy(to + header.size(), content.data(), content.size());
  return header.size() + content.size();
}

}  // namespace

FrameWriter::FrameWriter(int fd, int level) : fd_(fd), level_(level), slots_(WorkerCount() + 2) {
  for (unsigned i = 0; i < WorkerCount(); ++i) threads_.emplace_back([this] { Compress(); });
  threads_.emplace_back([this] { Hash(); });
}

FrameWriter::~FrameWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
}

Status FrameWriter::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    RETURN_IF_ERROR(Begin());
    const std::size_t size = std::min(bytes.size(), kFrameBytes - current_->plain_size);
    std::memcpy(current_->plain.get() + current_->plain_size, bytes.data(), size);
    if (in_member_) LatestPiece().end += size;
    current_->plain_size += size;
    plain_bytes_ += size;
    bytes = bytes.subspan(size);
    if (current_->plain_size == kFrameBytes) RETURN_IF_ERROR(Submit());
  }
  return OkStatus();
}

Status FrameWriter::WriteRaw(std::span<const std::byte, kRawBytes> bytes) {
  RETURN_IF_ERROR(Submit());
  RETURN_IF_ERROR(Begin());
  current_->raw = true;
  RETURN_IF_ERROR(Write(bytes));
  return Submit();
}

Status FrameWriter::Rewrite(std::uint64_t offset, std::span<const std::byte, kRawBytes> bytes) {
  RETURN_IF_ERROR(Flush());
  const auto place = raw_places_.find(offset);
  if (place == raw_places_.end()) return Internal("nothing that could be rewritten is there");
  const ssize_t put = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(place->second));
  if (put == static_cast<ssize_t>(bytes.size())) return OkStatus();
  return SyscallError(put < 0 ? errno : EIO, "pwrite the header");
}

void FrameWriter::BeginMember() { in_member_ = true; }

void FrameWriter::EndMember() {
  if (Begin().ok()) LatestPiece().last = true;  // else the next call says what is wrong
  in_member_ = false;
}

Result<std::vector<std::string>> FrameWriter::Digests() {
  RETURN_IF_ERROR(Flush());
  const std::lock_guard lock(mutex_);
  return digests_;
}

Status FrameWriter::Finish() {
  RETURN_IF_ERROR(Flush());
  const std::string table = frames::EncodeSeekTable(frames_);
  RETURN_IF_ERROR(WriteAll(fd_, table));
  stored_bytes_ += table.size();
  return OkStatus();
}

std::chrono::nanoseconds FrameWriter::cpu() const {
  const std::lock_guard lock(mutex_);
  return cpu_;
}

Status FrameWriter::Begin() {
  if (current_ != nullptr) return OkStatus();
  while (submitted_ - written_ == slots_.size()) RETURN_IF_ERROR(WriteOldest());
  Slot& slot = At(submitted_);
  if (!slot.plain) {
    slot.plain = std::make_unique_for_overwrite<std::byte[]>(kFrameBytes);
    slot.stored = std::make_unique_for_overwrite<std::byte[]>(ZSTD_compressBound(kFrameBytes));
  }
  slot.plain_size = slot.stored_size = 0;
  slot.plain_offset = plain_bytes_;
  slot.raw = slot.compressed = slot.hashed = false;
  slot.pieces.clear();
  current_ = &slot;
  return OkStatus();
}

Status FrameWriter::Submit() {
  if (current_ == nullptr) return OkStatus();
  {
    const std::lock_guard lock(mutex_);
    ++submitted_;
  }
  current_ = nullptr;
  work_.notify_all();
  while (OldestIsReady()) RETURN_IF_ERROR(WriteOldest());
  return OkStatus();
}

Status FrameWriter::Flush() {
  RETURN_IF_ERROR(Submit());
  while (written_ < submitted_) RETURN_IF_ERROR(WriteOldest());
  return OkStatus();
}

bool FrameWriter::OldestIsReady() const {
  const std::lock_guard lock(mutex_);
  const Slot& slot = slots_[written_ % slots_.size()];
  return written_ < submitted_ && slot.compressed && slot.hashed;
}

Status FrameWriter::WriteOldest() {
  Slot& slot = At(written_);
  {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return slot.compressed && slot.hashed; });
  }
  RETURN_IF_ERROR(slot.status);
  if (slot.stored_size > 0) {
    RETURN_IF_ERROR(WriteAll(fd_, std::span(slot.stored.get(), slot.stored_size)));
    // The disk gets to work now, so that the fsync at the end has little left to wait for.
    ::sync_file_range(fd_, static_cast<off_t>(stored_bytes_), static_cast<off_t>(slot.stored_size),
                      SYNC_FILE_RANGE_WRITE);
    if (slot.raw) raw_places_[slot.plain_offset] = stored_bytes_ + kRawHeaderBytes;
    frames_.push_back({.stored = static_cast<std::uint32_t>(slot.stored_size),
                       .plain = static_cast<std::uint32_t>(slot.plain_size)});
    stored_bytes_ += slot.stored_size;
  }
  ++written_;
  return OkStatus();
}

FrameWriter::Piece& FrameWriter::LatestPiece() {
  std::vector<Piece>& pieces = current_->pieces;
  if (pieces.empty() || pieces.back().last) {
    pieces.push_back({.begin = current_->plain_size, .end = current_->plain_size, .last = false});
  }
  return pieces.back();
}

void FrameWriter::Compress() {
  const std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  if (context) {
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level_);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  }
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || taken_ < submitted_; });
    if (stop_) return;
    Slot& slot = At(taken_++);
    lock.unlock();
    const auto before = ThreadCpu();
    if (!context) {
      slot.status = ResourceExhausted("no memory for zstd");
    } else if (slot.raw) {
      slot.stored_size = MakeRawFrame(
          std::span<const std::byte, kRawBytes>(slot.plain.get(), kRawBytes), slot.stored.get());
    } else if (slot.plain_size > 0) {
      slot.stored_size =
          ZSTD_compress2(context.get(), slot.stored.get(), ZSTD_compressBound(kFrameBytes),
                         slot.plain.get(), slot.plain_size);
      if (ZSTD_isError(slot.stored_size) != 0) {
        slot.status = Internal(std::string("zstd: ") + ZSTD_getErrorName(slot.stored_size));
      }
    }
    const auto spent = ThreadCpu() - before;
    lock.lock();
    cpu_ += spent;
    slot.compressed = true;
    done_.notify_one();
  }
}

void FrameWriter::Hash() {
  Sha256 hash;
  std::unique_lock lock(mutex_);
  for (std::uint64_t number = 0;; ++number) {
    work_.wait(lock, [&] { return stop_ || number < submitted_; });
    if (stop_) return;
    Slot& slot = At(number);
    lock.unlock();
    std::vector<std::string> ended;
    for (const Piece& piece : slot.pieces) {
      hash.Update(std::span(slot.plain.get() + piece.begin, piece.end - piece.begin));
      if (piece.last) ended.push_back(hash.Finish());
    }
    lock.lock();
    std::ranges::move(ended, std::back_inserter(digests_));
    slot.hashed = true;
    done_.notify_one();
  }
}

}  // namespace stasis::archive
