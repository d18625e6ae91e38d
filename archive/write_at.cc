#include "archive/write_at.h"

#include <unistd.h>

#include <cerrno>

namespace stasis::archive {

Status WriteAllAt(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return SyscallError(errno, "write");
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return OkStatus();
}

}  // namespace stasis::archive
