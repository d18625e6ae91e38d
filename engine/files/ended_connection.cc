// A connection over the loopback interface of the namespace under restore is really reset or closed. One to the peer
// that it had is made without this peer (TCP_REPAIR), and reset by a segment of our own making.
//
// Source  tcp(7), net/ipv4/af_inet.c inet_shutdown; tested on 6.18
// Rule    close(2) of an end with SO_LINGER of 0 seconds sends a reset, and what had arrived before can
//         still be read.
// Rule    A reset leaves the addresses and what was received, and shuts both directions; its error is gone when it
//         was asked for (SO_ERROR), tcp_reset() and tcp_done() in net/ipv4. What is closed in any other
//         way by its own side sends something, or forgets the peer.
// Rule    shutdown(2) of a socket that is not connected says ENOTCONN, but does shut it.
#include "engine/files/ended_connection.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "engine/files/inet_options.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_segment.h"

namespace stasis::engine {
namespace {

constexpr int kTimeoutMilliseconds = 1000;
constexpr std::uint32_t kFirstSequence = 1 << 30;                       // any
constexpr char kNothingArrives[] = "ended-connection-nothing-arrives";  // in Kept(), without a file
constexpr char kListenerKey[] = "ended-connection-listener";

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

// Room for all of `received` at once.
void EnlargeBuffer(int fd, int name, std::string_view received) {
  if (received.empty()) return;
  const auto bytes = static_cast<int>(std::min<std::size_t>(received.size() + 65536, 1u << 30));
  (void)SetSocketOption(fd, SOL_SOCKET, name, bytes);  // what is short then fails below
}

Status Receive(int fd, int peer, std::string_view received) {
  if (received.empty()) return OkStatus();
  EnlargeBuffer(peer, SO_SNDBUFFORCE, received);
  const ssize_t sent = ::send(peer, received.data(), received.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0) {
    return SyscallError(errno, "send over loopback");
  }
  for (int waited = 0; waited < kTimeoutMilliseconds; ++waited) {
    int there = 0;
    if (::ioctl(fd, SIOCINQ, &there) != 0) {
      return SyscallError(errno, "SIOCINQ");
    }
    if (static_cast<std::size_t>(there) == received.size()) return OkStatus();
    (void)::poll(nullptr, 0, 1);
  }
  return ResourceExhausted("unread bytes of a closed connection do not fit into a socket");
}

Status AwaitError(int fd) {
  pollfd waiting = {.fd = fd, .events = 0, .revents = 0};
  if (::poll(&waiting, 1, kTimeoutMilliseconds) == 1 && (waiting.revents & POLLERR) != 0) {
    return OkStatus();
  }
  return Internal("a connection over loopback was not reset");
}

Status Reset(int fd, UniqueFd peer) {
  constexpr linger kReset = {.l_onoff = 1, .l_linger = 0};
  RETURN_IF_ERROR(SetSocketOption(peer.get(), SOL_SOCKET, SO_LINGER, kReset));
  peer.Reset();
  return AwaitError(fd);
}

Status Close(int fd, UniqueFd peer) {
  peer.Reset();
  if (::shutdown(fd, SHUT_WR) != 0) {
    return SyscallError(errno, "shutdown");
  }
  pollfd waiting = {.fd = fd, .events = 0, .revents = 0};
  if (::poll(&waiting, 1, kTimeoutMilliseconds) != 1 || (waiting.revents & POLLHUP) == 0) {
    return Internal("a connection over loopback was not closed");
  }
  return OkStatus();
}

Result<UniqueFd> Make(int family, Ending ending, std::string_view received,
                      FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const int listener, Listener(context));
  ASSIGN_OR_RETURN(InetAddress address, LocalAddress(listener));
  if (family == AF_INET6) address = Mapped(address);
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(family, SOCK_STREAM, IPPROTO_TCP));
  if (family == AF_INET6) {
    RETURN_IF_ERROR(SetSocketOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0));
  }
  EnlargeBuffer(fd.get(), SO_RCVBUFFORCE, received);
  RETURN_IF_ERROR(context.actor().Connect(fd.get(), InetSockaddr(address).bytes()));
  UniqueFd peer(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer) {
    return SyscallError(errno, "accept on loopback");
  }
  RETURN_IF_ERROR(Receive(fd.get(), peer.get(), received));
  RETURN_IF_ERROR(ending == Ending::kReset ? Reset(fd.get(), std::move(peer))
                                           : Close(fd.get(), std::move(peer)));
  return fd;
}

Status FillReceiveQueue(int fd, std::string_view received) {
  constexpr std::size_t kChunkBytes = 65536;
  while (!received.empty()) {
    const std::string_view chunk = received.substr(0, kChunkBytes);
    const ssize_t sent = ::send(fd, chunk.data(), chunk.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return SyscallError(errno, "fill a TCP queue");
    received.remove_prefix(static_cast<std::size_t>(sent));
  }
  return OkStatus();
}

// An established connection, in repair mode, that takes only what we send it.
Status Establish(int fd, const InetAddress& local, const InetAddress& remote,
                 std::string_view received, FileRestoreContext& context) {
  constexpr int kNoQueue = 0, kReceiveQueue = 1;  // TCP_REPAIR_QUEUE
  RETURN_IF_ERROR(TakeOwnSegments(fd));
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR, 1));
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, kReceiveQueue));
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, kFirstSequence));
  RETURN_IF_ERROR(context.actor().Bind(fd, InetSockaddr(local).bytes()));
  RETURN_IF_ERROR(context.actor().Connect(fd, InetSockaddr(remote).bytes()));
  EnlargeBuffer(fd, SO_RCVBUFFORCE, received);
  RETURN_IF_ERROR(FillReceiveQueue(fd, received));
  return SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, kNoQueue);
}

}  // namespace

Result<UniqueFd> MakeEndedConnectionTo(const image::InetSkEntry& entry, const InetAddress& local,
                                       const InetAddress& remote, Ending ending,
                                       std::string_view received, FileRestoreContext& context) {
  if (context.Kept().contains(kNothingArrives)) return FailedPrecondition("nothing arrives here");
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(static_cast<int>(entry.family()),
                                                       SOCK_STREAM, IPPROTO_TCP));
  RETURN_IF_ERROR(RestoreInetOptionsBeforeBind(fd.get(), entry, context.actor()));
  RETURN_IF_ERROR(Establish(fd.get(), local, remote, received, context));
  const auto received_bytes = static_cast<std::uint32_t>(received.size());
  RETURN_IF_ERROR(ReceiveSegment(fd.get(), {.from = Unmapped(remote),
                                            .to = Unmapped(local),
                                            .sequence = kFirstSequence + received_bytes,
                                            .rst = true}));
  if (const Status reset = AwaitError(fd.get()); !reset.ok()) {
    context.Kept()[kNothingArrives];  // no other one waits for so long
    return reset;
  }
  if (ending == Ending::kClosed) {
    RETURN_IF_ERROR(SocketOption<int>(fd.get(), SOL_SOCKET, SO_ERROR).status());
  }
  RETURN_IF_ERROR(SetSocketOption(fd.get(), IPPROTO_TCP, TCP_REPAIR, 0));
  RETURN_IF_ERROR(SetSocketFilter(fd.get(), {}));
  RETURN_IF_ERROR(RestoreOptionsBeforeBind(fd.get(), entry.opts()));
  return fd;
}

Result<UniqueFd> MakeEndedConnection(int family, Ending ending, std::string_view received,
                                     FileRestoreContext& context) {
  Result<UniqueFd> fd = Make(family, ending, received, context);
  if (!fd.ok()) {
    return Annotate(fd.status(), "make a closed connection (needs the loopback interface up)");
  }
  return fd;
}

Result<UniqueFd> MakeShutSocket(int family, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(family, SOCK_STREAM, IPPROTO_TCP));
  // It says so, and shuts all the same.
  if (::shutdown(fd.get(), SHUT_RDWR) != 0 && errno != ENOTCONN) {
    return SyscallError(errno, "shutdown");
  }
  return fd;
}

}  // namespace stasis::engine
