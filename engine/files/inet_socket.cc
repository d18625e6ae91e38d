// TCP, MPTCP, UDP, UDP-Lite, ICMP and raw sockets over IPv4 and IPv6, behind the link "socket:[12]".
//
// State    family, protocol, both addresses, options; of TCP the state, of a listener the backlog.
//          By getsockopt and getsockname on the borrowed descriptor; what those do not tell by
//          sock_diag and /proc/PID/net
// Restore  the socket is made, bound and connected by the process under restore, in its namespace
// TCP      a connection is kept when the caller asks (tcp_hold.h, tcp_stream.h, tcp_connection.h);
//          otherwise it comes back as after a peer's reset, or closed, and the report names it
// Lost     what waits in a listener's queue, and datagrams that nobody has read. The interface
//          that IP_MULTICAST_IF chose by number, and keys of TCP_MD5SIG and TCP-AO: nothing shows them
// MPTCP    what Go programs listen with (net.ListenConfig, Go 1.24). The kernel tells and takes fewer
//          options; an accepted connection of a plain TCP peer is a plain TCP socket. Where a node has
//          no MPTCP the listener becomes one of TCP, as when the program starts there
// Not here other protocols, kernel TLS: refused
// Source   tcp(7), udp(7), socket(7), net/ipv4/tcp.c tcp_get_info; tested on 6.18
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/files/description.h"
#include "engine/files/ended_connection.h"
#include "engine/files/file_kind.h"
#include "engine/files/inet_address.h"
#include "engine/files/inet_ends.h"
#include "engine/files/inet_options.h"
#include "engine/files/socket.h"
#include "engine/files/socket_diag.h"
#include "engine/files/tcp_connection.h"
#include "engine/files/tcp_hold.h"
#include "engine/files/tcp_stream.h"
#include "engine/image/image_file.h"
#include "engine/proc/net_sockets.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) {
  const int family = SocketFamily(file);
  return family == AF_INET || family == AF_INET6;
}

// TCP to the program, whatever is below.
bool IsTcp(int protocol) { return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP; }
bool IsTcp(const image::InetSkEntry& entry) {
  return entry.type() == SOCK_STREAM && IsTcp(static_cast<int>(entry.proto()));
}

bool IsSupported(int family, int type, int protocol) {
  if (type == SOCK_STREAM) return IsTcp(protocol);
  if (type == SOCK_RAW) return true;
  const int icmp = family == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6};
  return type == SOCK_DGRAM &&
         (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == icmp);
}

// ---- dump ----

Status DumpProtocol(const OpenFile& file, image::InetSkEntry& entry) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const int type, SocketOption(fd, SOL_SOCKET, SO_TYPE));
  ASSIGN_OR_RETURN(const int protocol, SocketOption(fd, SOL_SOCKET, SO_PROTOCOL));
  if (!IsSupported(SocketFamily(file), type, protocol)) {
    return Unimplemented(NameOf(file) + ": sockets of protocol " + std::to_string(protocol) +
                         " cannot be checkpointed yet");
  }
  entry.set_family(static_cast<std::uint32_t>(SocketFamily(file)));
  entry.set_type(static_cast<std::uint32_t>(type));
  entry.set_proto(static_cast<std::uint32_t>(protocol));
  return OkStatus();
}

void SetEnded(image::InetSkEntry& entry) {
  entry.set_state(TCP_CLOSE);
  entry.set_shutdown(image::SHUTDOWN_BOTH);
}

void AddStream(const image::InetSkEntry& entry, const TcpStream& stream, FileDumpContext& context) {
  std::string name = ImageName("tcp-stream", entry.ino());
  name.resize(name.size() - std::string_view(".img").size());
  context.AddRecord(name, stream.entry.SerializeAsString(), stream.received + stream.sent);
}

bool HasPeer(const image::InetSkEntry& entry) {
  return entry.dst_port() != 0 ||
         std::ranges::any_of(entry.dst_addr(), [](auto w) { return w != 0; });
}

// A socket whose connection ended has both directions shut; one that never had any has not.
Status DumpClosed(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  entry.set_state(TCP_CLOSE);
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLRDHUP));
  if ((poll & POLLRDHUP) == 0) return OkStatus();
  SetEnded(entry);
  if ((poll & POLLERR) != 0) entry.set_stasis_reset(true);
  RETURN_IF_ERROR(DumpLastPeer(fd, entry));
  TcpStream stream;
  ASSIGN_OR_RETURN(stream.received, ReadClosedQueue(fd));
  // CRIU looks for one where there is a peer.
  if (stream.received.empty() && !HasPeer(entry)) return OkStatus();
  for (const auto set :
       {&image::TcpStreamEntry::set_inq_seq, &image::TcpStreamEntry::set_outq_len,
        &image::TcpStreamEntry::set_outq_seq, &image::TcpStreamEntry::set_opt_mask,
        &image::TcpStreamEntry::set_snd_wscale, &image::TcpStreamEntry::set_mss_clamp,
        &image::TcpStreamEntry::set_unsq_len}) {
    (stream.entry.*set)(0);  // required ones
  }
  stream.entry.set_inq_len(static_cast<std::uint32_t>(stream.received.size()));
  AddStream(entry, stream, context);
  return OkStatus();
}

Status DumpListener(const OpenFile& file, const tcp_info& info, image::InetSkEntry& entry,
                    FileDumpContext& context) {
  // Of a listener these two are the queue's limit and length.
  entry.set_backlog(info.tcpi_sacked);
  if (info.tcpi_unacked == 0) return OkStatus();
  const std::string waiting =
      std::to_string(info.tcpi_unacked) + " connections that wait to be accepted";
  if (context.options().tcp_established && !context.options().skip_in_flight) {
    return Unimplemented(waiting + " cannot be kept (--skip-in-flight leaves them out)");
  }
  context.Note(NameOf(file) + ": " + waiting + " will be gone");
  return OkStatus();
}

// getpeername(2) does not tell whom a TCP socket is still connecting to, nor the peer without a port of
// a raw one. `table`: "tcp", "raw".
Status DumpPeerByTable(const OpenFile& file, std::string table, image::InetSkEntry& entry) {
  if (entry.family() == AF_INET6) table += "6";
  ASSIGN_OR_RETURN(const std::string text, ReadNetFile(file, table));
  ASSIGN_OR_RETURN(const NetSocket socket, FindNetSocket(text, file.st.st_ino));
  entry.clear_dst_addr();
  for (const std::uint32_t word : socket.remote_words) entry.add_dst_addr(word);
  entry.set_dst_port(socket.remote_port);
  return OkStatus();
}

Status KeepConnection(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  if (entry.proto() == IPPROTO_MPTCP) {
    return Unimplemented("MPTCP connections cannot be kept (TCP_REPAIR)");
  }
  if (context.only_looks()) return OkStatus();
  ASSIGN_OR_RETURN(TcpHold hold, TcpHold::Take(fd));
  // Until then its state could change.
  ASSIGN_OR_RETURN(const tcp_info info, SocketOption<tcp_info>(fd, IPPROTO_TCP, TCP_INFO));
  entry.set_state(info.tcpi_state);
  if (info.tcpi_state == TCP_CLOSE) return DumpClosed(file, entry, context);
  if (!IsKeptState(info.tcpi_state)) {
    return Unimplemented("TCP connections in state " + std::to_string(info.tcpi_state) +
                         " cannot be kept");
  }
  ASSIGN_OR_RETURN(const TcpStream stream, ReadTcpStream(fd, info));
  if (info.tcpi_state == TCP_SYN_SENT) RETURN_IF_ERROR(DumpPeerByTable(file, "tcp", entry));
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLRDHUP));
  if ((poll & POLLRDHUP) != 0 && !HasPeerFin(entry.state())) {
    entry.set_shutdown(image::SHUTDOWN_READ);
  }
  AddStream(entry, stream, context);
  context.Connections().push_back(std::move(hold));
  return OkStatus();
}

Status DumpTcp(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const tcp_info info, SocketOption<tcp_info>(fd, IPPROTO_TCP, TCP_INFO));
  entry.set_state(info.tcpi_state);
  if (info.tcpi_state == TCP_LISTEN) return DumpListener(file, info, entry, context);
  if (info.tcpi_state == TCP_CLOSE) return DumpClosed(file, entry, context);
  const Options& options = context.options();
  if (options.tcp_established && !options.tcp_close) return KeepConnection(file, entry, context);
  ASSIGN_OR_RETURN(const InetAddress local, LocalAddress(fd));
  const Result<InetAddress> remote = RemoteAddress(fd);
  context.Note(
      NameOf(file) + ": TCP connection " + local.ToText() + " to " +
      (remote.ok() ? remote->ToText() : "a peer that is not there yet") +
      (options.tcp_close ? " will be closed" : " will be closed as by a reset from the peer"));
  if (options.tcp_close) SetEnded(entry);
  return OkStatus();
}

// poll(2) shows that reading is shut, and that both are; sock_diag writing alone, where the kernel has it.
Result<image::SkShutdown> ShutdownOf(const OpenFile& file, const image::InetSkEntry& entry,
                                     short poll) {
  if ((poll & POLLHUP) != 0) return image::SHUTDOWN_BOTH;
  const Result<std::uint32_t> shown = InetShutdown(file, entry.proto());
  if (shown.ok()) return static_cast<image::SkShutdown>(*shown & image::SHUTDOWN_BOTH);
  if (shown.status().code() != StatusCode::kNotFound) return shown.status();
  return (poll & POLLRDHUP) != 0 ? image::SHUTDOWN_READ : image::SHUTDOWN_NONE;
}

// Is an address that it is bound to gone, or was it never here (IP_FREEBIND)?
Result<bool> IsNonlocal(const OpenFile& file) {
  ASSIGN_OR_RETURN(InetAddress local, LocalAddress(file.borrowed.get()));
  if (local.IsWildcard()) return false;
  local.port = 0;
  const UniqueFd ns(::ioctl(file.borrowed.get(), SIOCGSKNS));
  if (!ns) {
    return SyscallError(errno, "SIOCGSKNS");
  }
  bool nonlocal = false;
  RETURN_IF_ERROR(InNamespace(ns.get(), CLONE_NEWNET, [&]() -> Status {
    const UniqueFd probe(::socket(local.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!probe) return SyscallError(errno, "socket");
    const InetSockaddr address(local);
    nonlocal = ::bind(probe.get(), reinterpret_cast<const sockaddr*>(address.bytes().data()),
                      static_cast<socklen_t>(address.bytes().size())) != 0 &&
               errno == EADDRNOTAVAIL;
    return OkStatus();
  }));
  return nonlocal;
}

// All but TCP.
Status DumpDatagrams(const OpenFile& file, image::InetSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  if (entry.type() == SOCK_RAW && !HasPeer(entry)) {
    const Status peer = DumpPeerByTable(file, "raw", entry);
    // In the table of IPv6 are no IPv6 sockets without that module.
    if (!peer.ok() && peer.code() != StatusCode::kNotFound) return peer;
    if (!HasPeer(entry)) entry.set_dst_port(0);
  }
  entry.set_state(HasPeer(entry) ? TCP_ESTABLISHED : TCP_CLOSE);
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLIN | POLLRDHUP));
  ASSIGN_OR_RETURN(const image::SkShutdown shutdown, ShutdownOf(file, entry, poll));
  if (shutdown != image::SHUTDOWN_NONE) entry.set_shutdown(shutdown);
  if ((poll & POLLIN) != 0 && (shutdown & image::SHUTDOWN_READ) == 0) {
    context.Note(NameOf(file) + ": datagrams that nobody has read will be gone");
  }
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry result = NewEntry(file, image::FD_INETSK);
  image::InetSkEntry& entry = *result.mutable_isk();
  RETURN_IF_ERROR(DumpCommon(file, context, entry));
  entry.set_ino(static_cast<std::uint32_t>(file.st.st_ino));
  entry.set_backlog(0);
  RETURN_IF_ERROR(DumpProtocol(file, entry));
  RETURN_IF_ERROR(Annotate(DumpEnds(file.borrowed.get(), entry), NameOf(file)));
  ASSIGN_OR_RETURN(*entry.mutable_opts(), DumpSocketOptions(file));
  RETURN_IF_ERROR(DumpInetOptions(file, entry));
  // After the options: a connection that is to be kept changes some of them for that time.
  RETURN_IF_ERROR(
      Annotate(IsTcp(entry) ? DumpTcp(file, entry, context) : DumpDatagrams(file, entry, context),
               NameOf(file)));
  if (entry.state() == TCP_LISTEN || entry.state() == TCP_CLOSE || !IsTcp(entry)) {
    ASSIGN_OR_RETURN(const bool nonlocal, IsNonlocal(file));
    if (nonlocal) entry.set_stasis_nonlocal(true);
  }
  return result;
}

// ---- restore ----

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
  if (ErrnoOf(status) == EADDRINUSE) {
    return Annotate(status, "bind to " + address.ToText() +
                                " (another program has it, or for a minute a connection that was "
                                "closed: try again when it is free)");
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

// Another socket with the same port, which needs both to allow it while they bind.
bool SharesPort(const image::InetSkEntry& entry, FileRestoreContext& context) {
  if (entry.src_port() == 0 || entry.type() == SOCK_RAW) return false;
  return std::ranges::any_of(context.entries(), [&](const image::FileEntry& other) {
    const image::InetSkEntry& socket = other.isk();
    return other.type() == image::FD_INETSK && other.id() != entry.id() &&
           socket.proto() == entry.proto() && socket.src_port() == entry.src_port() &&
           (!IsTcp(socket) || socket.state() == TCP_LISTEN || socket.state() == TCP_CLOSE);
  });
}

Status RestoreDatagrams(int fd, const image::InetSkEntry& entry, const InetAddress& local,
                        FileRestoreContext& context) {
  const bool reuse = entry.opts().reuseaddr() || SharesPort(entry, context);
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, int{reuse}));
  const bool connects = entry.state() == TCP_ESTABLISHED;
  RETURN_IF_ERROR(Bind(fd, local, connects, context));
  if (connects) {
    ASSIGN_OR_RETURN(InetAddress remote, RemoteEnd(entry));
    RETURN_IF_ERROR(RestoreScope(fd, entry, remote));
    RETURN_IF_ERROR(Annotate(context.actor().Connect(fd, InetSockaddr(remote).bytes()),
                             "connect a UDP socket to " + remote.ToText()));
  }
  // What is not connected is shut too, though it says ENOTCONN.
  if (entry.shutdown() != image::SHUTDOWN_NONE &&
      ::shutdown(fd, static_cast<int>(entry.shutdown()) - 1) != 0 && errno != ENOTCONN) {
    return SyscallError(errno, "shutdown");
  }
  return OkStatus();
}

bool IsConnection(const image::InetSkEntry& entry) {
  if (!IsTcp(entry) || entry.state() == TCP_LISTEN) return false;
  return entry.state() != TCP_CLOSE || entry.shutdown() == image::SHUTDOWN_BOTH;
}

// As EndsOf, of a socket that is yet to be made.
Result<InetEnds> EndsToBe(const image::InetSkEntry& entry, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const UniqueFd any,
                   context.actor().Socket(static_cast<int>(entry.family()), SOCK_STREAM, 0));
  return EndsOf(any.get(), entry);
}

// One that had ended when it was dumped.
Result<UniqueFd> RestoreEnded(const image::InetSkEntry& entry, FileRestoreContext& context) {
  const int family = static_cast<int>(entry.family());
  Result<TcpStream> stream = LoadTcpStream(context.source(), entry.ino());
  if (stream.status().code() == StatusCode::kNotFound) stream = TcpStream();
  RETURN_IF_ERROR(stream.status());
  const Ending ending = entry.stasis_reset() ? Ending::kReset : Ending::kClosed;
  if (HasPeer(entry) && entry.src_port() != 0) {
    ASSIGN_OR_RETURN(const InetEnds ends, EndsToBe(entry, context));
    Result<UniqueFd> known =
        MakeEndedConnectionTo(entry, ends.local, ends.remote, ending, stream->received, context);
    if (known.ok()) return known;
    // Without the right, the address or a way there, or where one that was between them has ended a moment ago.
  }
  Result<UniqueFd> fd = MakeEndedConnection(family, ending, stream->received, context);
  // Without a loopback interface.
  if (!fd.ok() && ending == Ending::kClosed && stream->received.empty()) {
    return MakeShutSocket(family, context);
  }
  return fd;
}

Result<UniqueFd> RestoreLost(const image::InetSkEntry& entry, FileRestoreContext& context) {
  const int family = static_cast<int>(entry.family());
  if (context.options().tcp_close) return MakeShutSocket(family, context);
  ASSIGN_OR_RETURN(const InetEnds ends, EndsOf(-1, entry));
  context.Note("TCP connection " + ends.local.ToText() + " to " + ends.remote.ToText() +
               " was closed as by a reset from the peer");
  return MakeEndedConnection(family, Ending::kReset, {}, context);
}

bool IsKept(const image::InetSkEntry& entry, const Options& options) {
  return options.tcp_established && !options.tcp_close && entry.proto() == IPPROTO_TCP &&
         IsKeptState(entry.state());
}

// NotFound: its dump did not keep it.
Result<UniqueFd> RestoreKept(const image::InetSkEntry& entry, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(TcpStream stream, LoadTcpStream(context.source(), entry.ino()));
  ASSIGN_OR_RETURN(const InetEnds ends, EndsToBe(entry, context));
  Result<UniqueFd> fd = MakeConnection(entry, std::move(stream), ends.local, ends.remote, context);
  if (fd.status().code() == StatusCode::kNotFound) return Internal(Message(fd.status()));
  return fd;
}

Status ShareAll(int fd) {
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  return SetSocketOption(fd, SOL_SOCKET, SO_REUSEPORT, 1);
}

// Until all are bound.
Status Share(const UniqueFd& fd, const image::InetSkEntry& entry, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(UniqueFd own, Duplicate(fd.get()));
  context.SharedPorts().push_back(
      {std::move(own), entry.opts().reuseaddr(), entry.opts().so_reuseport()});
  return ShareAll(fd.get());
}

Result<UniqueFd> RestoreConnection(const image::InetSkEntry& entry, FileRestoreContext& context) {
  Result<UniqueFd> fd =
      entry.state() == TCP_CLOSE ? RestoreEnded(entry, context) : RestoreLost(entry, context);
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(RestoreSocketOptions(fd->get(), entry.opts()));
  if (SharesPort(entry, context)) RETURN_IF_ERROR(Share(*fd, entry, context));
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
  const bool shares = SharesPort(entry, context);
  if (shares) RETURN_IF_ERROR(ShareAll(fd.get()));
  RETURN_IF_ERROR(RestoreInetOptionsBeforeBind(fd.get(), entry, context.actor()));
  ASSIGN_OR_RETURN(InetAddress local, LocalEnd(entry));
  if (entry.type() == SOCK_RAW) local.port = 0;  // what is shown there is the protocol
  RETURN_IF_ERROR(RestoreScope(fd.get(), entry, local));
  RETURN_IF_ERROR(IsTcp(entry) ? RestoreTcp(fd.get(), entry, local, context)
                               : RestoreDatagrams(fd.get(), entry, local, context));
  RETURN_IF_ERROR(RestoreInetOptions(fd.get(), entry, context.actor()));
  RETURN_IF_ERROR(RestoreSocketOptions(fd.get(), entry.opts()));
  RETURN_IF_ERROR(RestoreLastInetOptions(fd.get(), entry));
  if (shares) RETURN_IF_ERROR(Share(fd, entry, context));
  return fd;
}

Result<UniqueFd> Restore(const image::FileEntry& file, FileRestoreContext& context) {
  if (!file.has_isk()) return DataLoss("no internet socket in the entry");
  const image::InetSkEntry& entry = file.isk();
  RETURN_IF_ERROR(context.EnterNetwork(entry.ns_id()));
  const int family = static_cast<int>(entry.family()), type = static_cast<int>(entry.type());
  if ((family != AF_INET && family != AF_INET6) ||
      !IsSupported(family, type, static_cast<int>(entry.proto()))) {
    return Unimplemented("a socket of family " + std::to_string(entry.family()) + ", protocol " +
                         std::to_string(entry.proto()) + " cannot be restored yet");
  }
  Result<UniqueFd> fd = NotFound("not kept");
  if (IsKept(entry, context.options())) fd = RestoreKept(entry, context);
  if (fd.status().code() == StatusCode::kNotFound) {
    fd = IsConnection(entry) ? RestoreConnection(entry, context) : RestoreBound(entry, context);
  }
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(SetStatusFlags(fd->get(), entry.flags()));
  return fd;
}

}  // namespace

const FileKind kInetSocket = {.name = "internet socket",
                              .owns = Owns,
                              .dump = Dump,
                              .type = image::FD_INETSK,
                              .restore = Restore};

}  // namespace stasis::engine
