#include "engine/base/io.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace stasis {

Result<UniqueFd> OpenAt(int dir_fd, const std::string& path, int flags, unsigned mode) {
  UniqueFd fd(::openat(dir_fd, path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) {
    return SyscallError(errno, "open " + path);
  }
  return fd;
}

Result<UniqueFd> OpenInRoot(int root_fd, const std::string& path, std::uint64_t flags) {
  open_how how = {};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root_fd, path.c_str(), &how, sizeof(how))));
  if (!fd) {
    return SyscallError(errno, "look up " + path);
  }
  return fd;
}

Result<std::string> ReadFd(int fd, std::size_t limit_bytes) {
  std::string content;
  std::array<char, 16384> piece;
  while (true) {
    const ssize_t got = ::read(fd, piece.data(), piece.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "read");
    }
    if (got == 0) return content;
    if (content.size() + static_cast<std::size_t>(got) > limit_bytes) {
      return ResourceExhausted("larger than " + std::to_string(limit_bytes) + " bytes");
    }
    content.append(piece.data(), static_cast<std::size_t>(got));
  }
}

Result<std::string> ReadFileAt(int dir_fd, const std::string& path, std::size_t limit_bytes) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(dir_fd, path, O_RDONLY));
  Result<std::string> content = ReadFd(fd.get(), limit_bytes);
  if (!content.ok()) return Annotate(content.status(), path);
  return content;
}

Result<std::string> ReadLinkAt(int dir_fd, const std::string& path) {
  std::string target(4096, '\0');
  while (true) {
    const ssize_t length = ::readlinkat(dir_fd, path.c_str(), target.data(), target.size());
    if (length < 0) {
      return SyscallError(errno, "readlink " + path);
    }
    if (static_cast<std::size_t>(length) < target.size()) {
      return target.substr(0, static_cast<std::size_t>(length));  // without the room: many are kept
    }
    target.resize(target.size() * 2);
  }
}

Status WriteAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "write");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return OkStatus();
}

Status WriteAll(int fd, std::string_view text) {
  return WriteAll(fd, std::as_bytes(std::span(text.data(), text.size())));
}

Status ReadExactAt(int fd, std::span<std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "pread");
    }
    if (got == 0) return DataLoss("the file ends " + std::to_string(bytes.size()) + " bytes early");
    bytes = bytes.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return OkStatus();
}

}  // namespace stasis
