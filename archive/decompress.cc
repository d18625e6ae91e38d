#include "archive/decompress.h"

#include <archive.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "archive/libarchive.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;

constexpr std::string_view kZstd("\x28\xb5\x2f\xfd", 4);
constexpr std::array<std::string_view, 4> kMagics = {
    kZstd, std::string_view("\x1f\x8b", 2),  // gzip
    std::string_view("BZh", 3),              // bzip2
    std::string_view("\xfd"
                     "7zXZ\0",
                     6),  // xz
};

bool BeginsAs(int fd, std::span<const std::string_view> magics) {
  std::array<char, 6> start = {};
  const ssize_t got = ::pread(fd, start.data(), start.size(), 0);
  const std::string_view have(start.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  return std::ranges::any_of(magics,
                             [&](std::string_view magic) { return have.starts_with(magic); });
}

}  // namespace

bool IsCompressed(int fd) { return BeginsAs(fd, kMagics); }

bool IsZstd(int fd) { return BeginsAs(fd, std::span(&kZstd, 1)); }

Result<UniqueFd> Decompressed(UniqueFd fd, const std::string& folder, std::uint64_t max_bytes,
                              const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  if (!IsCompressed(fd.get())) return fd;
  struct stat compressed = {};
  if (::fstat(fd.get(), &compressed) != 0) return SyscallError(errno, "fstat");
  UniqueFd plain(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!plain) {
    return SyscallError(errno, "a scratch file in " + folder);
  }
  const ReadHandle reader(archive_read_new());
  RETURN_IF_ERROR(SupportFilters(reader.get()));
  archive_read_support_format_raw(reader.get());
  archive_entry* entry = nullptr;
  if (archive_read_open_fd(reader.get(), fd.get(), kPiece) != ARCHIVE_OK ||
      archive_read_next_header(reader.get(), &entry) != ARCHIVE_OK) {
    return LibarchiveError(reader.get(), StatusCode::kDataLoss, "decompress");
  }
  std::unique_ptr<std::byte[]> piece(new std::byte[kPiece]);
  for (std::uint64_t total = 0;;) {
    const la_ssize_t got = archive_read_data(reader.get(), piece.get(), kPiece);
    if (got < 0) return LibarchiveError(reader.get(), StatusCode::kDataLoss, "decompress");
    if (got == 0) return plain;
    total += static_cast<std::uint64_t>(got);
    if (total > max_bytes) {
      return ResourceExhausted("over " + std::to_string(max_bytes) + " bytes once decompressed");
    }
    RETURN_IF_ERROR(Annotate(
        WriteAll(plain.get(), std::span(piece.get(), static_cast<std::size_t>(got))),
        "the scratch file in " + folder + " (free space there, or decompress the archive first)"));
    if (progress) {
      progress(static_cast<std::uint64_t>(archive_filter_bytes(reader.get(), -1)),
               static_cast<std::uint64_t>(compressed.st_size));
    }
  }
}

}  // namespace stasis::archive
