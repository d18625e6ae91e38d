#include "engine/frames/framed_file.h"

#include <sys/stat.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "engine/base/io.h"

namespace stasis::frames {
namespace {

struct FreeContext {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

Status Damaged(const SeekTable::Frame& frame, const std::string& how) {
  return DataLoss("the zstd frame at byte " + std::to_string(frame.stored_offset) + " " + how +
                  "; copy the archive anew from where it came");
}

}  // namespace

Result<std::unique_ptr<FramedFile>> FramedFile::Open(UniqueFd& fd, std::uint64_t max_plain_bytes) {
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) return SyscallError(errno, "fstat");
  ASSIGN_OR_RETURN(
      std::optional<SeekTable> table,
      SeekTable::Read(fd.get(), static_cast<std::uint64_t>(st.st_size), max_plain_bytes));
  if (!table) return std::unique_ptr<FramedFile>();
  return std::unique_ptr<FramedFile>(new FramedFile(std::move(fd), *std::move(table)));
}

Status FramedFile::ReadAt(std::span<std::byte> bytes, std::uint64_t offset) const {
  if (offset > plain_size() || bytes.size() > plain_size() - offset) {
    return DataLoss("the file ends before what is read of it");
  }
  while (!bytes.empty()) {
    const std::size_t index = table_.Find(offset);
    const SeekTable::Frame frame = table_.At(index);
    const std::uint64_t skip = offset - frame.plain_offset;
    const auto part = bytes.first(std::min(bytes.size(), frame.plain_size - skip));
    if (part.size() == frame.plain_size) {
      RETURN_IF_ERROR(Decompress(frame, part));
    } else {
      const std::shared_ptr<Content> content = Remembered(index);
      const std::lock_guard lock(content->mutex);
      if (!content->status) {
        content->bytes = std::make_unique_for_overwrite<std::byte[]>(frame.plain_size);
        content->status = Decompress(frame, std::span(content->bytes.get(), frame.plain_size));
      }
      RETURN_IF_ERROR(*content->status);
      std::memcpy(part.data(), content->bytes.get() + skip, part.size());
    }
    bytes = bytes.subspan(part.size());
    offset += part.size();
  }
  return OkStatus();
}

std::shared_ptr<FramedFile::Content> FramedFile::Remembered(std::size_t frame) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(
      recent_, [frame](const auto& content) { return content->index == frame; });
  if (found != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, found);
    return recent_.front();
  }
  recent_.push_front(std::make_shared<Content>(frame));
  recent_bytes_ += table_.At(frame).plain_size;
  while (recent_bytes_ > kMaxFrameBytes && recent_.size() > 1) {
    recent_bytes_ -= table_.At(recent_.back()->index).plain_size;
    recent_.pop_back();
  }
  return recent_.front();
}

Status FramedFile::Decompress(const SeekTable::Frame& frame, std::span<std::byte> bytes) const {
  const auto stored = std::make_unique_for_overwrite<std::byte[]>(frame.stored_size);
  RETURN_IF_ERROR(
      ReadExactAt(fd_.get(), std::span(stored.get(), frame.stored_size), frame.stored_offset));
  if (ZSTD_findFrameCompressedSize(stored.get(), frame.stored_size) != frame.stored_size ||
      ZSTD_getFrameContentSize(stored.get(), frame.stored_size) != bytes.size()) {
    return Damaged(frame, "is not of the sizes that the table gives");
  }
  const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (!context) return ResourceExhausted("no memory for zstd");
  // One call with room for all: zstd takes no window of its own, whatever the frame asks for.
  const std::size_t got = ZSTD_decompressDCtx(context.get(), bytes.data(), bytes.size(),
                                              stored.get(), frame.stored_size);
  if (ZSTD_isError(got) != 0) {
    return Damaged(frame, std::string("is damaged (") + ZSTD_getErrorName(got) + ")");
  }
  return got == bytes.size() ? OkStatus() : Damaged(frame, "is shorter than the table says");
}

}  // namespace stasis::frames
