#include "engine/frames/seek_table.h"

#include <endian.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "engine/base/io.h"

namespace stasis::frames {
namespace {

constexpr std::uint32_t kSkippableMagic = 0x184D2A5E;
constexpr std::uint32_t kSeekableMagic = 0x8F92EAB1;
constexpr std::size_t kSkippableHeaderBytes = 8;
constexpr std::size_t kFooterBytes = 9;  // count, descriptor, magic
constexpr std::uint8_t kHasChecksums = 0x80;
constexpr std::uint8_t kReserved = 0x7c;
// A table of a million frames of a MiB each takes 16 MiB here.
constexpr std::uint32_t kMostFrames = 1U << 20;

void Put32(std::string& to, std::uint32_t value) {
  value = htole32(value);
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::uint32_t Get32(std::span<const std::byte> bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.subspan(at, sizeof(value)).data(), sizeof(value));
  return le32toh(value);
}

Status Lies(const std::string& how) {
  return DataLoss("the table of its zstd frames " + how +
                  ": the archive is cut short or altered; copy it anew from where it came");
}

}  // namespace

std::string EncodeSeekTable(std::span<const FrameSizes> frames) {
  std::string table;
  Put32(table, kSkippableMagic);
  Put32(table, static_cast<std::uint32_t>(frames.size() * sizeof(FrameSizes) + kFooterBytes));
  for (const FrameSizes& frame : frames) {
    Put32(table, frame.stored);
    Put32(table, frame.plain);
  }
  Put32(table, static_cast<std::uint32_t>(frames.size()));
  table.push_back('\0');
  Put32(table, kSeekableMagic);
  return table;
}

Result<std::optional<SeekTable>> SeekTable::Read(int fd, std::uint64_t file_size,
                                                 std::uint64_t max_plain_bytes) {
  if (file_size < kSkippableHeaderBytes + kFooterBytes) return std::optional<SeekTable>();
  std::array<std::byte, kFooterBytes> footer;
  RETURN_IF_ERROR(ReadExactAt(fd, footer, file_size - footer.size()));
  if (Get32(footer, 5) != kSeekableMagic) return std::optional<SeekTable>();
  const std::uint32_t count = Get32(footer, 0);
  const auto descriptor = static_cast<std::uint8_t>(footer[4]);
  if ((descriptor & kReserved) != 0) return Lies("is of an unknown kind");
  if (count > kMostFrames) {
    return ResourceExhausted("over " + std::to_string(kMostFrames) + " zstd frames");
  }
  const std::size_t entry_bytes = (descriptor & kHasChecksums) != 0 ? 12 : 8;
  const std::uint64_t content = std::uint64_t{count} * entry_bytes + kFooterBytes;
  if (content + kSkippableHeaderBytes > file_size) return Lies("is longer than the file");
  const std::uint64_t begin = file_size - content - kSkippableHeaderBytes;
  std::array<std::byte, kSkippableHeaderBytes> header;
  RETURN_IF_ERROR(ReadExactAt(fd, header, begin));
  if (Get32(header, 0) != kSkippableMagic || Get32(header, 4) != content) {
    return Lies("does not begin where it says");
  }
  const std::size_t bytes = std::size_t{count} * entry_bytes;
  const auto entries = std::make_unique_for_overwrite<std::byte[]>(bytes);
  RETURN_IF_ERROR(ReadExactAt(fd, std::span(entries.get(), bytes), begin + kSkippableHeaderBytes));
  SeekTable table;
  RETURN_IF_ERROR(table.TakeEntries(std::span(entries.get(), bytes), entry_bytes));
  if (table.points_.back().stored != begin) return Lies("does not match the file's size");
  if (table.plain_size() > max_plain_bytes) {
    return ResourceExhausted("over " + std::to_string(max_plain_bytes) +
                             " bytes once decompressed");
  }
  if (table.too_large_) return std::optional<SeekTable>();
  return std::optional(std::move(table));
}

// Sums of a million 32-bit sizes are far from overflowing.
Status SeekTable::TakeEntries(std::span<const std::byte> entries, std::size_t entry_bytes) {
  points_.reserve(entries.size() / entry_bytes + 1);
  points_.push_back({0, 0});
  for (std::size_t at = 0; at < entries.size(); at += entry_bytes) {
    const std::uint64_t stored = Get32(entries, at);
    const std::uint64_t plain = Get32(entries, at + 4);
    // RFC 8878: nothing makes a frame larger than this but padding of blocks without content.
    if (stored == 0 || (plain != 0 && stored > ZSTD_compressBound(plain))) {
      return Lies("has a frame of " + std::to_string(stored) + " bytes for " +
                  std::to_string(plain));
    }
    too_large_ = too_large_ || plain > kMaxFrameBytes;
    points_.push_back({points_.back().stored + stored, points_.back().plain + plain});
  }
  return OkStatus();
}

std::size_t SeekTable::Find(std::uint64_t plain_offset) const {
  const auto behind = std::ranges::upper_bound(points_, plain_offset, {}, &Point::plain);
  return static_cast<std::size_t>(behind - points_.begin()) - 1;
}

SeekTable::Frame SeekTable::At(std::size_t index) const {
  const Point& begin = points_[index];
  const Point& end = points_[index + 1];
  return {.stored_offset = begin.stored,
          .stored_size = end.stored - begin.stored,
          .plain_offset = begin.plain,
          .plain_size = end.plain - begin.plain};
}

}  // namespace stasis::frames
