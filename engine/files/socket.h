// What sockets of all families share: options, the network namespace, addresses.
#pragma once

#include <linux/filter.h>
#include <sys/socket.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// An option whose value is of type T.
template <typename T = int>
Result<T> SocketOption(int fd, int level, int name) {
  T value = {};
  socklen_t length = sizeof(value);
  if (::getsockopt(fd, level, name, &value, &length) != 0) {
    return SyscallError(errno, "getsockopt " + std::to_string(level) + " " + std::to_string(name));
  }
  return value;
}

template <typename T>
Status SetSocketOption(int fd, int level, int name, const T& value) {
  if (::setsockopt(fd, level, name, &value, sizeof(value)) != 0) {
    return SyscallError(errno, "setsockopt " + std::to_string(level) + " " + std::to_string(name));
  }
  return OkStatus();
}

/// SO_DOMAIN, or -1 for what is no socket.
int SocketFamily(const OpenFile& file);

/// The classic BPF program that a socket's packets pass; empty without one. Unimplemented for one of eBPF.
Result<std::vector<sock_filter>> SocketFilter(int fd);
/// Puts it in the place of the one that is there.
Status SetSocketFilter(int fd, std::span<const sock_filter> program);

/// The SOL_SOCKET options of `file`. Unimplemented for one that a restore may not set.
Result<image::SkOptsEntry> DumpSocketOptions(const OpenFile& file);

/// Sets those that bind(2) looks at: SO_REUSEPORT, SO_BINDTODEVICE.
Status RestoreOptionsBeforeBind(int fd, const image::SkOptsEntry& options);

/// setsockopt(2) with the rights of the process under restore; FailedPrecondition where it has not those.
Status SetOptionByActor(FileActor& actor, int fd, int level, int name,
                        std::span<const std::byte> value);

/// Sets those that need a right: SO_MARK, a high SO_PRIORITY.
Status RestorePrivilegedOptions(int fd, const image::SkOptsEntry& options, FileActor& actor);

/// Sets the others. InvalidArgument for one that would need a right, unless it is set already.
Status RestoreSocketOptions(int fd, const image::SkOptsEntry& options);

/// The inode of the network namespace that the socket is in.
Result<std::uint64_t> NetworkOf(const OpenFile& file);

/// The text of /proc/net/`name` in that namespace.
Result<std::string> ReadNetFile(const OpenFile& file, const std::string& name);

/// A netlink socket of `protocol` in the network namespace of the socket `file`, whatever ours is.
Result<UniqueFd> NetlinkSocketBeside(const OpenFile& file, int protocol);

}  // namespace stasis::engine
