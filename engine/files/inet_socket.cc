// TCP, MPTCP and UDP sockets over IPv4 and IPv6, behind the link "socket:[12]".
//
// State    family, protocol, both addresses, options; of TCP the state, of a listener the backlog.
//          All by getsockopt and getsockname on the borrowed descriptor: no netlink, no need to be
//          there
// Restore  the socket is made, bound and connected by the process under restore, in its namespace
// Lost     TCP connections: they come back as after a peer's reset, and the report names them. What
//          waits in a listener's queue, and datagrams that nobody has read. Multicast memberships
// MPTCP    what Go programs listen with (net.ListenConfig, Go 1.24). The kernel tells and takes fewer
//          options; an accepted connection of a plain TCP peer is a plain TCP socket. Where a node has
//          no MPTCP the listener becomes one of TCP, as when the program starts there
// Not here other protocols, kernel TLS: refused
// Source   tcp(7), udp(7), socket(7), net/ipv4/tcp.c tcp_get_info; tested on 6.18
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/inet_address.h"
#include "engine/files/inet_options.h"
#include "engine/files/reset_connection.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) {
  const int family = SocketFamily(file);
  return family == AF_INET || family == AF_INET6;
}

// TCP to the program, whatever is below.
bool IsTcp(int protocol) { return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP; }
bool IsTcp(const image::InetSkEntry& entry) { return IsTcp(static_cast<int>(entry.proto())); }

// ---- dump ----

Status DumpProtocol(const OpenFile& file, image::InetSkEntry& entry) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const int type, SocketOption(fd, SOL_SOCKET, SO_TYPE));
  ASSIGN_OR_RETURN(const int protocol, SocketOption(fd, SOL_SOCKET, SO_PROTOCOL));
  const bool tcp = type == SOCK_STREAM && IsTcp(protocol);
  const bool udp = type == SOCK_DGRAM && protocol == IPPROTO_UDP;
  if (!tcp && !udp) {
    const std::string name = protocol == IPPROTO_ICMP ? "ICMP"
                             : type == SOCK_RAW       ? "raw"
                                                      : "protocol " + std::to_string(protocol);
    return Unimplemented(NameOf(file) + ": " + name + " sockets cannot be checkpointed yet");
  }
  entry.set_family(static_cast<std::uint32_t>(SocketFamily(file)));
  entry.set_type(static_cast<std::uint32_t>(type));
  entry.set_proto(static_cast<std::uint32_t>(protocol));
  return OkStatus();
}

// Interfaces are known by number to a socket, by name to an image. The ioctl asks in the socket's
// namespace.
Status DumpScope(int fd, std::uint32_t index, image::InetSkEntry& entry) {
  if (index == 0) return OkStatus();
  ifreq request = {};
  request.ifr_ifindex = static_cast<int>(index);
  if (::ioctl(fd, SIOCGIFNAME, &request) != 0) {
    return SyscallError(errno, "name of network interface " + std::to_string(index));
  }
  entry.set_ifname(request.ifr_name, ::strnlen(request.ifr_name, IFNAMSIZ));
  return OkStatus();
}

Status DumpAddresses(const OpenFile& file, image::InetSkEntry& entry) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const InetAddress local, LocalAddress(fd));
  Result<InetAddress> remote = RemoteAddress(fd);
  if (!remote.ok() && remote.status().code() != StatusCode::kNotFound) return remote.status();
  if (!remote.ok()) remote = InetAddress{.family = local.family};
  for (std::size_t i = 0; i < local.word_count(); ++i) {
    entry.add_src_addr(local.words[i]);
    entry.add_dst_addr(remote->words[i]);
  }
  entry.set_src_port(local.port);
  entry.set_dst_port(remote->port);
  return DumpScope(fd, local.scope != 0 ? local.scope : remote->scope, entry);
}

Status DumpTcp(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const tcp_info info, SocketOption<tcp_info>(fd, IPPROTO_TCP, TCP_INFO));
  entry.set_state(info.tcpi_state);
  if (info.tcpi_state == TCP_LISTEN) {
    // Of a listener these two are the queue's limit and length.
    entry.set_backlog(info.tcpi_sacked);
    if (info.tcpi_unacked > 0) {
      context.Note(NameOf(file) + ": " + std::to_string(info.tcpi_unacked) +
                   " connections that wait to be accepted will be gone");
    }
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLRDHUP));
  if (info.tcpi_state == TCP_CLOSE) {
    // A socket whose connection ended has both directions shut; one that never had any has not.
    if ((poll & POLLRDHUP) != 0) entry.set_shutdown(image::SHUTDOWN_BOTH);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const InetAddress local, LocalAddress(fd));
  const Result<InetAddress> remote = RemoteAddress(fd);
  context.Note(NameOf(file) + ": TCP connection " + local.ToText() + " to " +
               (remote.ok() ? remote->ToText() : "a peer that is not there yet") +
               " will be closed as by a reset from the peer");
  return OkStatus();
}

Status DumpUdp(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  entry.set_state(entry.dst_port() != 0 ? TCP_ESTABLISHED : TCP_CLOSE);
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLIN | POLLRDHUP));
  if ((poll & POLLHUP) != 0) {
    entry.set_shutdown(image::SHUTDOWN_BOTH);
  } else if ((poll & POLLRDHUP) != 0) {
    entry.set_shutdown(image::SHUTDOWN_READ);
  } else if ((poll & POLLIN) != 0) {
    context.Note(NameOf(file) + ": datagrams that nobody has read will be gone");
  }
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  RETURN_IF_ERROR(CheckNetworkNamespace(file));
  image::FileEntry result = NewEntry(file, image::FD_INETSK);
  image::InetSkEntry& entry = *result.mutable_isk();
  RETURN_IF_ERROR(DumpCommon(file, context, entry));
  entry.set_ino(static_cast<std::uint32_t>(file.st.st_ino));
  entry.set_backlog(0);
  RETURN_IF_ERROR(DumpProtocol(file, entry));
  RETURN_IF_ERROR(Annotate(DumpAddresses(file, entry), NameOf(file)));
  RETURN_IF_ERROR(IsTcp(entry) ? DumpTcp(file, entry, context) : DumpUdp(file, entry, context));
  ASSIGN_OR_RETURN(*entry.mutable_opts(), DumpSocketOptions(file));
  RETURN_IF_ERROR(DumpInetOptions(file, entry));
  return result;
}

// ---- restore ----

Result<InetAddress> AddressOf(const image::InetSkEntry& entry,
                              const google::protobuf::RepeatedField<std::uint32_t>& words,
                              std::uint32_t port) {
  InetAddress address;
  address.family = static_cast<int>(entry.family());
  if (static_cast<std::size_t>(words.size()) != address.word_count() || port > 0xffff) {
    return DataLoss("a socket with a strange address");
  }
  std::copy(words.begin(), words.end(), address.words.begin());
  address.port = static_cast<std::uint16_t>(port);
  return address;
}

// The interface of a link-local address, by name, in the namespace of `fd`.
Status RestoreScope(int fd, const image::InetSkEntry& entry, InetAddress& address) {
  if (entry.ifname().empty()) return OkStatus();
  ifreq request = {};
  entry.ifname().copy(request.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(fd, SIOCGIFINDEX, &request) != 0) {
    return SyscallError(errno, "network interface " + entry.ifname().substr(0, IFNAMSIZ));
  }
  address.scope = static_cast<std::uint32_t>(request.ifr_ifindex);
  return OkStatus();
}

// A socket that connect(2) bound has the address that the machine had then. Where that is gone, any
// will do for one that is to be connected again.
Status Bind(int fd, InetAddress address, bool connects, FileRestoreContext& context) {
  if (address.port == 0 && address.IsWildcard()) return OkStatus();
  Status status = context.actor().Bind(fd, InetSockaddr(address).bytes());
  if (ErrnoOf(status) == EADDRNOTAVAIL && connects) {
    context.Note("a UDP socket of " + address.ToText() + " has another address now");
    address.words = {};
    address.scope = 0;
    status = context.actor().Bind(fd, InetSockaddr(address).bytes());
  }
  if (ErrnoOf(status) == EADDRNOTAVAIL) {
    return FailedPrecondition("the container has no address " + address.ToText() +
                              " here; restore it where it has, or let the program listen on all");
  }
  return Annotate(status, "bind to " + address.ToText());
}

Status RestoreTcp(int fd, const image::InetSkEntry& entry, const InetAddress& local,
                  FileRestoreContext& context) {
  // As long as it binds: a connection of the checkpoint that lingers in TIME_WAIT would be in the
  // way.
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  RETURN_IF_ERROR(Bind(fd, local, false, context));
  if (entry.state() != TCP_LISTEN) return OkStatus();
  if (::listen(fd, static_cast<int>(std::min(entry.backlog(), std::uint32_t{SOMAXCONN}))) != 0) {
    return SyscallError(errno, "listen on " + local.ToText());
  }
  return OkStatus();
}

Status RestoreUdp(int fd, const image::InetSkEntry& entry, const InetAddress& local,
                  FileRestoreContext& context) {
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, int{entry.opts().reuseaddr()}));
  const bool connects = entry.state() == TCP_ESTABLISHED;
  RETURN_IF_ERROR(Bind(fd, local, connects, context));
  if (connects) {
    ASSIGN_OR_RETURN(InetAddress remote, AddressOf(entry, entry.dst_addr(), entry.dst_port()));
    RETURN_IF_ERROR(RestoreScope(fd, entry, remote));
    RETURN_IF_ERROR(Annotate(context.actor().Connect(fd, InetSockaddr(remote).bytes()),
                             "connect a UDP socket to " + remote.ToText()));
  }
  if (entry.shutdown() != image::SHUTDOWN_NONE && connects &&
      ::shutdown(fd, static_cast<int>(entry.shutdown()) - 1) != 0) {
    return SyscallError(errno, "shutdown");
  }
  return OkStatus();
}

// Connections cannot come back, and neither can a socket whose connection had ended.
bool IsConnection(const image::InetSkEntry& entry) {
  if (!IsTcp(entry) || entry.state() == TCP_LISTEN) return false;
  return entry.state() != TCP_CLOSE || entry.shutdown() == image::SHUTDOWN_BOTH;
}

Result<UniqueFd> RestoreConnection(const image::InetSkEntry& entry, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(UniqueFd fd, MakeResetConnection(static_cast<int>(entry.family()), context));
  if (entry.state() == TCP_CLOSE) return fd;
  ASSIGN_OR_RETURN(const InetAddress local, AddressOf(entry, entry.src_addr(), entry.src_port()));
  ASSIGN_OR_RETURN(const InetAddress remote, AddressOf(entry, entry.dst_addr(), entry.dst_port()));
  context.Note("TCP connection " + local.ToText() + " to " + remote.ToText() +
               " was closed as by a reset from the peer");
  return fd;
}

Result<UniqueFd> MakeSocket(const image::InetSkEntry& entry, FileRestoreContext& context) {
  const int family = static_cast<int>(entry.family()), type = static_cast<int>(entry.type());
  Result<UniqueFd> fd = context.actor().Socket(family, type, static_cast<int>(entry.proto()));
  const int error = ErrnoOf(fd.status());
  // net.mptcp.enabled is 0 in the new namespace, or the kernel was built without it.
  if (entry.proto() == IPPROTO_MPTCP && (error == ENOPROTOOPT || error == EPROTONOSUPPORT)) {
    context.Note("an MPTCP socket is one of TCP now, since this node has no MPTCP");
    return context.actor().Socket(family, type, IPPROTO_TCP);
  }
  return fd;
}

Result<UniqueFd> RestoreBound(const image::InetSkEntry& entry, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(UniqueFd fd, MakeSocket(entry, context));
  RETURN_IF_ERROR(RestoreOptionsBeforeBind(fd.get(), entry.opts()));
  RETURN_IF_ERROR(RestoreInetOptionsBeforeBind(fd.get(), entry));
  ASSIGN_OR_RETURN(InetAddress local, AddressOf(entry, entry.src_addr(), entry.src_port()));
  RETURN_IF_ERROR(RestoreScope(fd.get(), entry, local));
  RETURN_IF_ERROR(IsTcp(entry) ? RestoreTcp(fd.get(), entry, local, context)
                               : RestoreUdp(fd.get(), entry, local, context));
  RETURN_IF_ERROR(RestoreInetOptions(fd.get(), entry));
  return fd;
}

Result<UniqueFd> Restore(const image::FileEntry& file, FileRestoreContext& context) {
  if (!file.has_isk()) return DataLoss("no internet socket in the entry");
  const image::InetSkEntry& entry = file.isk();
  const bool tcp = entry.type() == SOCK_STREAM && IsTcp(entry);
  const bool udp = entry.type() == SOCK_DGRAM && entry.proto() == IPPROTO_UDP;
  if ((!tcp && !udp) || (entry.family() != AF_INET && entry.family() != AF_INET6)) {
    return Unimplemented("a socket of family " + std::to_string(entry.family()) + ", protocol " +
                         std::to_string(entry.proto()) + " cannot be restored yet");
  }
  ASSIGN_OR_RETURN(UniqueFd fd, IsConnection(entry) ? RestoreConnection(entry, context)
                                                    : RestoreBound(entry, context));
  RETURN_IF_ERROR(RestoreSocketOptions(fd.get(), entry.opts()));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.flags()));
  return fd;
}

}  // namespace

const FileKind kInetSocket = {.name = "internet socket",
                              .owns = Owns,
                              .dump = Dump,
                              .type = image::FD_INETSK,
                              .restore = Restore};

}  // namespace stasis::engine
