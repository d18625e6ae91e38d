// A connection over the loopback interface of the namespace under restore is really reset: nothing
// else gives a socket this state. close(2) of an end with SO_LINGER of 0 seconds sends the reset,
// tcp(7), and over loopback it has arrived when close returns.
#include "engine/files/reset_connection.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "engine/files/inet_address.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr int kResetTimeoutMilliseconds = 1000;
constexpr char kListenerKey[] = "reset-connection-listener";

InetAddress Loopback() {
  InetAddress address;
  address.family = AF_INET;
  address.words[0] = htonl(INADDR_LOOPBACK);
  return address;
}

// ::ffff:127.0.0.1: IPv6 may be off, or its loopback address missing.
InetAddress Mapped(const InetAddress& v4) {
  InetAddress address;
  address.family = AF_INET6;
  address.words = {0, 0, htonl(0xffff), v4.words[0]};
  address.port = v4.port;
  return address;
}

// One listener serves all connections, until all files are restored.
Result<int> Listener(FileRestoreContext& context) {
  UniqueFd& kept = context.Kept()[kListenerKey];
  if (kept) return kept.get();
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
  RETURN_IF_ERROR(context.actor().Bind(fd.get(), InetSockaddr(Loopback()).bytes()));
  if (::listen(fd.get(), 1) != 0) {
    return SyscallError(errno, "listen on loopback");
  }
  kept = std::move(fd);
  return kept.get();
}

Result<UniqueFd> Make(int family, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const int listener, Listener(context));
  ASSIGN_OR_RETURN(InetAddress address, LocalAddress(listener));
  if (family == AF_INET6) address = Mapped(address);
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(family, SOCK_STREAM, IPPROTO_TCP));
  if (family == AF_INET6) {
    RETURN_IF_ERROR(SetSocketOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0));
  }
  RETURN_IF_ERROR(context.actor().Connect(fd.get(), InetSockaddr(address).bytes()));
  UniqueFd peer(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer) {
    return SyscallError(errno, "accept on loopback");
  }
  constexpr linger kReset = {.l_onoff = 1, .l_linger = 0};
  RETURN_IF_ERROR(SetSocketOption(peer.get(), SOL_SOCKET, SO_LINGER, kReset));
  peer.Reset();
  pollfd waiting = {.fd = fd.get(), .events = 0, .revents = 0};
  if (::poll(&waiting, 1, kResetTimeoutMilliseconds) != 1 || (waiting.revents & POLLERR) == 0) {
    return Internal("a connection over loopback was not reset");
  }
  return fd;
}

}  // namespace

Result<UniqueFd> MakeResetConnection(int family, FileRestoreContext& context) {
  Result<UniqueFd> fd = Make(family, context);
  if (!fd.ok()) {
    return Annotate(fd.status(), "make a closed connection (needs the loopback interface up)");
  }
  return fd;
}

}  // namespace stasis::engine
