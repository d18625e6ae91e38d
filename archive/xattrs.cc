#include "archive/xattrs.h"

#include <sys/xattr.h>

#include <cerrno>

namespace stasis::archive {

Result<Xattrs> ReadXattrs(int path_fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(path_fd);
  std::string names(65536, '\0');  // XATTR_LIST_MAX
  const ssize_t length = ::listxattr(path.c_str(), names.data(), names.size());
  if (length < 0 && errno == EOPNOTSUPP) return Xattrs{};
  if (length < 0) {
    return SyscallError(errno, "listxattr");
  }
  Xattrs xattrs;
  for (std::size_t at = 0; at < static_cast<std::size_t>(length);) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    std::string value(65536, '\0');  // XATTR_SIZE_MAX
    const ssize_t size = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (size < 0 && errno == ENODATA) continue;
    if (size < 0) {
      return SyscallError(errno, "getxattr " + name);
    }
    value.resize(static_cast<std::size_t>(size));
    xattrs[name] = std::move(value);
  }
  return xattrs;
}

}  // namespace stasis::archive
