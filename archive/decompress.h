// Compressed archives, made plain.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {

/// By its first bytes: gzip, zstd, bzip2 or xz; zstd.
bool IsCompressed(int fd);
bool IsZstd(int fd);

/// `fd` itself when its content is not compressed; else a file without a name in `folder` with the
/// plain content. gzip, zstd, bzip2 and xz are known by their first bytes. ResourceExhausted above
/// `max_bytes`.
Result<UniqueFd> Decompressed(
    UniqueFd fd, const std::string& folder, std::uint64_t max_bytes,
    const std::function<void(std::uint64_t, std::uint64_t)>& progress = {});

}  // namespace stasis::archive
