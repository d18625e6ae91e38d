// Source  unix(7), fsopen(2), chroot(2), net/unix/af_unix.c; tested on 6.18
// Rule    The name is what bind(2) was given; others come in by the inode that it made. A socket holds its
//         inode and mount, so both may be where no path leads.
// Rule    connect(2) and sendmsg(2) follow symbolic links, so the link of an O_PATH descriptor in
//         /proc/self/fd leads to the socket, be it deleted. SIOCUNIXFILE gives that descriptor.
// Rule    An abstract name is of the socket's network namespace, not of the caller's.
#include "engine/files/unix_name.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

namespace stasis::engine {
namespace {

constexpr unsigned long kFileOfSocket = 0x89E0;  // SIOCUNIXFILE, linux/un.h

Status Bind(int fd, const std::string& name) {
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(name));
  if (::bind(fd, reinterpret_cast<const sockaddr*>(address.data()),
             static_cast<socklen_t>(address.size())) != 0) {
    return SyscallError(errno, "bind to " + NameText(name));
  }
  return OkStatus();
}

// An empty tmpfs that is mounted nowhere.
Result<UniqueFd> NewTmpfs() {
  const UniqueFd context(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC)));
  if (!context ||
      ::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return SyscallError(errno, "a tmpfs for the path of a unix socket");
  }
  UniqueFd mount(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  if (!mount) {
    return SyscallError(errno, "mount a tmpfs for the path of a unix socket");
  }
  return mount;
}

// In a thread whose root directory is its own.
Status BindInside(int mount, int fd, const std::string& name) {
  if (::unshare(CLONE_FS) != 0 || ::fchdir(mount) != 0 || ::chroot(".") != 0) {
    return SyscallError(errno, "enter a tmpfs");
  }
  ::umask(0);
  const std::string path = NameText(name);
  for (std::size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    if (::mkdir(path.substr(0, slash).c_str(), 0700) != 0 && errno != EEXIST) {
      return SyscallError(errno, "mkdir for the path of a unix socket");
    }
  }
  RETURN_IF_ERROR(Bind(fd, name));
  if (::unlink(path.c_str()) != 0) {
    return SyscallError(errno, "unlink " + path);
  }
  return OkStatus();
}

}  // namespace

std::string NameText(const std::string& name) {
  if (name.empty()) return "a socket without a name";
  if (name.front() == '\0') return "@" + name.substr(1);
  return name.substr(0, name.find('\0'));
}

Result<std::vector<std::byte>> AddressOf(const std::string& name) {
  sockaddr_un address = {};
  if (name.empty() || name.size() > sizeof(address.sun_path)) {
    return DataLoss("a unix socket with a name of " + std::to_string(name.size()) + " bytes");
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const auto* const bytes = reinterpret_cast<const std::byte*>(&address);
  return std::vector<std::byte>(bytes, bytes + offsetof(sockaddr_un, sun_path) + name.size());
}

Status BindUnseen(int fd, const std::string& name) {
  if (name.starts_with('\0')) return Bind(fd, name);
  ASSIGN_OR_RETURN(const UniqueFd mount, NewTmpfs());
  Status status = Internal("the thread did not run");
  std::thread([&] { status = BindInside(mount.get(), fd, name); }).join();
  return status;
}

Result<UniqueFd> BoundFile(int fd) {
  UniqueFd file(::ioctl(fd, kFileOfSocket));
  if (!file) {
    return SyscallError(errno, "the file of a unix socket");
  }
  ::fcntl(file.get(), F_SETFD, FD_CLOEXEC);
  return file;
}

Result<Reach> ReachOf(int fd, const std::string& name) {
  Reach reach;
  if (!name.starts_with('\0')) {
    ASSIGN_OR_RETURN(reach.file, BoundFile(fd));
    const std::string link = "/proc/self/fd/" + std::to_string(reach.file.get());
    ASSIGN_OR_RETURN(reach.address, AddressOf(link + '\0'));
    return reach;
  }
  ASSIGN_OR_RETURN(reach.address, AddressOf(name));
  return reach;
}

}  // namespace stasis::engine
