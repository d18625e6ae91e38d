#include "archive/frame_writer.h"

#include <endian.h>
#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <thread>

#include "archive/write_at.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

// Each has a context of zstd's, of up to some MiB.
constexpr unsigned kMostWorkers = 4;
// One that is filled, and one that is written.
constexpr unsigned kMoreBuffers = 2;
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

/// The frame of `content` in `to`, which has room for the largest; its size.
Result<std::size_t> MakeFrame(ZSTD_CCtx& context, std::span<const std::byte> content, bool raw,
                              std::byte* to) {
  if (content.empty()) return 0;
  if (raw) return MakeRawFrame(content.first<FrameWriter::kRawBytes>(), to);
  const std::size_t size = ZSTD_compress2(
      &context, to, ZSTD_compressBound(FrameWriter::kFrameBytes), content.data(), content.size());
  if (ZSTD_isError(size) == 0) return size;
  return Internal(std::string("zstd: ") + ZSTD_getErrorName(size));
}

}  // namespace

FrameWriter::FrameWriter(int fd, int level)
    : fd_(fd),
      level_(level),
      made_(WorkerCount() + kMoreBuffers),
      ring_(
          {.buffers = made_.size(), .workers = WorkerCount()}, [this] { return MakeCompressor(); },
          [this](const HashedRing::Buffer& buffer) { return WriteOut(buffer); }) {}

Status FrameWriter::Write(std::span<const std::byte> bytes) {
  RETURN_IF_ERROR(ring_.SetKind(kCompressed));
  return ring_.Write(bytes);
}

Status FrameWriter::Fill(std::uint64_t size, const engine::ReadPiece& read,
                         const engine::PassedOn& passed_on) {
  RETURN_IF_ERROR(ring_.SetKind(kCompressed));
  return ring_.Fill(size, read, passed_on);
}

Status FrameWriter::WriteRaw(std::span<const std::byte, kRawBytes> bytes) {
  if (ring_.bytes() % kRawBytes != 0) return Internal("a raw frame could fall into two buffers");
  RETURN_IF_ERROR(ring_.SetKind(kCompressed));  // one that follows another is one of its own
  RETURN_IF_ERROR(ring_.SetKind(kRaw));
  return ring_.Write(bytes);
}

Status FrameWriter::Rewrite(std::uint64_t offset, std::span<const std::byte, kRawBytes> bytes) {
  RETURN_IF_ERROR(ring_.Flush());
  const auto place = raw_places_.find(offset);
  if (place == raw_places_.end()) return Internal("nothing that could be rewritten is there");
  return WriteAllAt(fd_, bytes, place->second);
}

Status FrameWriter::Finish() {
  RETURN_IF_ERROR(ring_.Flush());
  const std::string table = frames::EncodeSeekTable(frames_);
  RETURN_IF_ERROR(WriteAll(fd_, table));
  stored_bytes_ += table.size();
  return OkStatus();
}

std::chrono::nanoseconds FrameWriter::cpu() const {
  const std::lock_guard lock(mutex_);
  return cpu_;
}

HashedRing::Work FrameWriter::MakeCompressor() {
  const std::shared_ptr<ZSTD_CCtx> context(ZSTD_createCCtx(), FreeContext());
  if (context) {
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level_);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  }
  return [this, context](const HashedRing::Buffer& buffer) -> Status {
    if (!context) return ResourceExhausted("no memory for zstd");
    const auto before = ThreadCpu();
    Frame& frame = made_[buffer.slot];
    if (!frame.bytes) {
      frame.bytes = std::make_unique_for_overwrite<std::byte[]>(ZSTD_compressBound(kFrameBytes));
    }
    ASSIGN_OR_RETURN(frame.size,
                     MakeFrame(*context, buffer.content, buffer.kind == kRaw, frame.bytes.get()));
    const std::lock_guard lock(mutex_);
    cpu_ += ThreadCpu() - before;
    return OkStatus();
  };
}

Status FrameWriter::WriteOut(const HashedRing::Buffer& buffer) {
  const Frame& frame = made_[buffer.slot];
  if (frame.size == 0) return OkStatus();
  RETURN_IF_ERROR(WriteAll(fd_, std::span(frame.bytes.get(), frame.size)));
  // The disk gets to work now, so that the fsync at the end has little left to wait for.
  ::sync_file_range(fd_, static_cast<off_t>(stored_bytes_), static_cast<off_t>(frame.size),
                    SYNC_FILE_RANGE_WRITE);
  if (buffer.kind == kRaw) raw_places_[buffer.offset] = stored_bytes_ + kRawHeaderBytes;
  frames_.push_back({.stored = static_cast<std::uint32_t>(frame.size),
                     .plain = static_cast<std::uint32_t>(buffer.content.size())});
  stored_bytes_ += frame.size;
  return OkStatus();
}

}  // namespace stasis::archive
