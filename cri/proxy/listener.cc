#include "cri/proxy/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

namespace stasis::cri {
namespace {

constexpr int kSystemdFirstFd = 3;  // SD_LISTEN_FDS_START, sd_listen_fds(3)

std::optional<long> EnvironmentNumber(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  return *end == '\0' ? std::optional(number) : std::nullopt;
}

Result<std::optional<UniqueFd>> SocketFromSystemd() {
  const auto pid = EnvironmentNumber("LISTEN_PID");
  const auto count = EnvironmentNumber("LISTEN_FDS");
  // Not ours: the variables are inherited by children that they were not meant for.
  if (!pid || *pid != ::getpid() || !count || *count == 0) return std::nullopt;
  if (*count != 1) {
    return InvalidArgument("systemd handed over " + std::to_string(*count) +
                           " sockets; the socket unit must have exactly one ListenStream");
  }
  UniqueFd socket(kSystemdFirstFd);
  int listening = 0;
  socklen_t size = sizeof(listening);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || !listening) {
    return InvalidArgument("the descriptor from systemd is not a listening socket");
  }
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  return std::optional(std::move(socket));
}

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return InvalidArgument("the socket path " + path + " is longer than " +
                           std::to_string(sizeof(address.sun_path) - 1) + " bytes (unix(7))");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    const int error = errno;
    return error == ENOENT ? OkStatus() : SyscallError(error, "lstat " + path);
  }
  if (!S_ISSOCK(status.st_mode)) {
    return FailedPrecondition(path +
                              " exists and is not a socket; remove it or use another --listen");
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return AlreadyExists("another process serves " + path + "; stop it or use another --listen");
  }
  if (::unlink(path.c_str()) != 0) {
    const int error = errno;
    return SyscallError(error, "unlink the stale socket " + path);
  }
  return OkStatus();
}

}  // namespace

Result<std::string> UnixSocketPath(const std::string& endpoint) {
  constexpr std::string_view kScheme = "unix://";
  std::string path = endpoint.rfind(kScheme, 0) == 0 ? endpoint.substr(kScheme.size()) : endpoint;
  if (path.empty() || path.front() != '/') {
    return InvalidArgument("'" + endpoint + "' is not a unix socket; write unix:///absolute/path");
  }
  return path;
}

Result<Listener> Listen(const std::string& endpoint) {
  ASSIGN_OR_RETURN(std::optional<UniqueFd> handed_over, SocketFromSystemd());
  if (handed_over) return Listener{std::move(*handed_over), ""};

  ASSIGN_OR_RETURN(const std::string path, UnixSocketPath(endpoint));
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  RETURN_IF_ERROR(RemoveStale(path, address));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) {
    const int error = errno;
    return SyscallError(error, "socket");
  }
  // bind(2) gives the new file the mode of the socket's own inode, less the umask: so there is no
  // moment at which others could connect (net/unix/af_unix.c, unix_bind_bsd).
  if (::fchmod(socket.get(), 0660) != 0 ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    return SyscallError(error, "bind " + path);
  }
  if (::listen(socket.get(), SOMAXCONN) != 0) {
    const int error = errno;
    return SyscallError(error, "listen on " + path);
  }
  return Listener{std::move(socket), path};
}

Result<UniqueFd> ConnectTo(const std::string& path) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // unix(7): connected at once, or EAGAIN when as many wait there as listen(2) allows.
  if (!socket ||
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    return Unavailable("the container runtime does not answer at " + path + " (" +
                       std::strerror(error) +
                       "); ask again when it runs, or see --runtime-endpoint");
  }
  return socket;
}

}  // namespace stasis::cri
