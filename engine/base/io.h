// Whole-buffer reads and writes on descriptors, and small files read at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis {

/// Opens `path` below `dir_fd` (AT_FDCWD allowed) with O_CLOEXEC added to `flags`.
Result<UniqueFd> OpenAt(int dir_fd, const std::string& path, int flags, unsigned mode = 0);

/// Opens `path` as a process would whose root directory is `root_fd`, links too, but none of /proc that leads anywhere
/// else (openat2(2)): somebody else's tree does not lead out of itself.
Result<UniqueFd> OpenInRoot(int root_fd, const std::string& path, std::uint64_t flags);

/// The whole content of `path` below `dir_fd`; ResourceExhausted when it is larger than `limit_bytes`.
/// Works for /proc files, whose stat size is 0.
Result<std::string> ReadFileAt(int dir_fd, const std::string& path,
                               std::size_t limit_bytes = std::size_t{64} << 20);
Result<std::string> ReadFd(int fd, std::size_t limit_bytes = std::size_t{64} << 20);

/// The target of the symbolic link `path` below `dir_fd`.
Result<std::string> ReadLinkAt(int dir_fd, const std::string& path);

/// Writes all of `bytes`, or says why not.
Status WriteAll(int fd, std::span<const std::byte> bytes);
Status WriteAll(int fd, std::string_view text);

/// Fills all of `bytes` from `offset`; DataLoss when the file ends before.
Status ReadExactAt(int fd, std::span<std::byte> bytes, std::uint64_t offset);

}  // namespace stasis
