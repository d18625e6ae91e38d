// Source  tcp(7), net/ipv4/tcp.c do_tcp_setsockopt, tcp_send_rcvq, tcp_repair_options_est,
//         tcp_repair_set_window; net/ipv4/tcp_output.c tcp_connect, tcp_write_xmit; tested on 6.18
// Rule    In repair mode a socket may bind to a port in use, connect(2) makes it established and sends
//         nothing, send(2) fills the queue that TCP_REPAIR_QUEUE chose.
// Rule    TCP_QUEUE_SEQ is set before connect(2), TCP_REPAIR_OPTIONS right after it, TCP_REPAIR_WINDOW when
//         the received bytes are there: it may not acknowledge more than those.
// Rule    What is put into the send queue in repair mode counts as sent. The rest is sent when the
//         connection goes on.
// Rule    A FIN takes a sequence number but has no place in a queue: ours is shutdown(2)'s, the peer's and
//         its acknowledgement are segments of our making.
// Rule    SO_RCVBUF and SO_SNDBUF end the kernel's own sizing of buffers; SO_BUF_LOCK lets it begin again.
#include "engine/files/tcp_connection.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "engine/files/description.h"
#include "engine/files/inet_options.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_hold.h"
#include "engine/files/tcp_segment.h"

namespace stasis::engine {
namespace {

constexpr int kNoQueue = 0, kReceiveQueue = 1, kSendQueue = 2;  // TCP_REPAIR_QUEUE
constexpr std::size_t kChunkBytes = 65536;
constexpr int kBufLock = 72;                           // SO_BUF_LOCK
constexpr std::uint32_t kBufferLimitBytes = 32 << 20;  // what tcp_rmem allows by default, tcp(7)
constexpr std::uint32_t kQueueLimitBytes = 1u << 30;   // the largest window
constexpr std::uint32_t kMaxScale = 14;                // RFC 7323
constexpr int kSettleMilliseconds = 1000;

Status Check(const TcpStream& stream) {
  const image::TcpStreamEntry& entry = stream.entry;
  if (entry.inq_len() > kQueueLimitBytes || entry.outq_len() > kQueueLimitBytes ||
      entry.snd_wscale() > kMaxScale || entry.rcv_wscale() > kMaxScale) {
    return DataLoss("a TCP connection with strange numbers");
  }
  return OkStatus();
}

std::size_t UnsentBytes(const TcpStream& stream) {
  return std::min<std::size_t>(stream.entry.unsq_len(), stream.sent.size());
}

Status SetSequence(int fd, int queue, std::uint32_t sequence) {
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
  return SetSocketOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, sequence);
}

// Buffers as large as they were and as the queues need.
Status EnlargeBuffers(int fd, const image::SkOptsEntry& options, const TcpStream& stream) {
  const auto size = [](std::uint32_t saved, std::size_t queue) {
    const std::size_t needed = 2 * queue + 2 * kChunkBytes;
    return static_cast<int>(std::max<std::size_t>(std::min(saved, kBufferLimitBytes), needed) / 2);
  };
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_RCVBUFFORCE,
                                  size(options.so_rcvbuf(), stream.received.size())));
  return SetSocketOption(fd, SOL_SOCKET, SO_SNDBUFFORCE,
                         size(options.so_sndbuf(), stream.sent.size()));
}

// The saved sizes, where they are the kernel's own; a program's come with the other options.
Status SettleBuffers(int fd, const image::SkOptsEntry& options) {
  const std::pair<int, std::uint32_t> buffers[] = {{SO_RCVBUFFORCE, options.so_rcvbuf()},
                                                   {SO_SNDBUFFORCE, options.so_sndbuf()}};
  for (const auto& [name, size] : buffers) {
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, name, std::min(size, kBufferLimitBytes) / 2));
  }
  return SetSocketOption(fd, SOL_SOCKET, kBufLock, 0);
}

Status Send(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const std::string_view chunk = bytes.substr(0, kChunkBytes);
    const ssize_t sent = ::send(fd, chunk.data(), chunk.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      return SyscallError(errno, "fill a TCP queue");
    }
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return OkStatus();
}

Status Fill(int fd, int queue, std::string_view bytes) {
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
  return Send(fd, bytes);
}

Status SetNegotiated(int fd, const image::TcpStreamEntry& entry) {
  std::vector<tcp_repair_opt> options = {{TCPOPT_MAXSEG, entry.mss_clamp()}};
  if ((entry.opt_mask() & TCPI_OPT_WSCALE) != 0) {
    options.push_back({TCPOPT_WINDOW, entry.snd_wscale() | entry.rcv_wscale() << 16});
  }
  if ((entry.opt_mask() & TCPI_OPT_SACK) != 0) options.push_back({TCPOPT_SACK_PERMITTED, 0});
  const bool clock = (entry.opt_mask() & TCPI_OPT_TIMESTAMPS) != 0;
  if (clock) options.push_back({TCPOPT_TIMESTAMP, 0});
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                   static_cast<socklen_t>(options.size() * sizeof(options[0]))) != 0) {
    return SyscallError(errno, "TCP_REPAIR_OPTIONS");
  }
  if (!clock) return OkStatus();
  return SetSocketOption(fd, IPPROTO_TCP, TCP_TIMESTAMP, entry.timestamp());
}

Status SetWindow(int fd, std::uint32_t state, const TcpStream& stream) {
  const image::TcpStreamEntry& entry = stream.entry;
  if (!entry.has_snd_wnd()) return OkStatus();  // of an old CRIU
  tcp_repair_window window = {.snd_wl1 = entry.snd_wl1(),
                              .snd_wnd = entry.snd_wnd(),
                              .max_window = entry.max_window(),
                              .rcv_wnd = entry.rcv_wnd(),
                              .rcv_wup = entry.rcv_wup()};
  if (HasPeerFin(state)) {
    // The FIN was acknowledged, and is yet to come.
    if (window.rcv_wup == entry.inq_seq()) --window.rcv_wup;
    window.rcv_wnd = std::max(window.rcv_wnd, 1u);
  }
  // A window may have come with a segment from beyond ours, as a peer's probes do.
  const std::uint32_t edge = stream.receive_end(state) + window.rcv_wnd;
  if (static_cast<std::int32_t>(window.snd_wl1 - edge) > 0) window.snd_wl1 = edge;
  return SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, window);
}

Status BeginRepair(int fd) {
  // Nothing may reach a connection that is not whole yet: its answer would end it.
  RETURN_IF_ERROR(DropPackets(fd));
  const Status status = SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR, 1);
  if (ErrnoOf(status) != EPERM) return status;
  return PermissionDenied(
      "established TCP connections need CAP_NET_ADMIN in the user namespace of the network "
      "namespace (TCP_REPAIR)");
}

Status BindLocal(int fd, const InetAddress& local, FileRestoreContext& context) {
  const Status status = context.actor().Bind(fd, InetSockaddr(local).bytes());
  if (ErrnoOf(status) == EADDRNOTAVAIL) {
    return FailedPrecondition("TCP connections of " + local.ToText() +
                              ", an address that is not here: restore them where it is, or closed "
                              "(--tcp-close)");
  }
  return Annotate(status, "bind to " + local.ToText());
}

Status Establish(int fd, const image::InetSkEntry& entry, const TcpStream& stream,
                 const InetAddress& remote, FileRestoreContext& context) {
  const Status status = context.actor().Connect(fd, InetSockaddr(remote).bytes());
  if (ErrnoOf(status) == EADDRNOTAVAIL) {
    return FailedPrecondition("the TCP connection to " + remote.ToText() + " is there already");
  }
  RETURN_IF_ERROR(Annotate(status, "connect to " + remote.ToText()));
  RETURN_IF_ERROR(SetNegotiated(fd, stream.entry));
  RETURN_IF_ERROR(Fill(fd, kReceiveQueue, stream.received));
  const std::size_t sent = stream.sent.size() - UnsentBytes(stream);
  RETURN_IF_ERROR(Fill(fd, kSendQueue, std::string_view(stream.sent).substr(0, sent)));
  RETURN_IF_ERROR(SetWindow(fd, entry.state(), stream));
  return SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, kNoQueue);
}

// Waits until the connection is in `state`: loopback delivers at once, or nearly so.
Status Await(int fd, std::uint32_t state) {
  for (int waited = 0;; ++waited) {
    ASSIGN_OR_RETURN(const tcp_info info, SocketOption<tcp_info>(fd, IPPROTO_TCP, TCP_INFO));
    if (info.tcpi_state == state) return OkStatus();
    if (waited == kSettleMilliseconds) {
      return Internal("a TCP connection is in state " + std::to_string(info.tcpi_state) + ", not " +
                      std::to_string(state) + ": is the loopback interface up?");
    }
    (void)::poll(nullptr, 0, 1);
  }
}

// A segment of the peer's that says no more of the window than what is known.
TcpSegment FromPeer(const PendingConnection& connection) {
  const image::TcpStreamEntry& entry = connection.stream.entry;
  const std::uint32_t state = connection.entry.state();
  return {.from = Unmapped(connection.remote),
          .to = Unmapped(connection.local),
          .sequence = connection.stream.receive_end(state),
          .acknowledged = connection.stream.send_end(state) - entry.outq_len(),
          .window =
              static_cast<std::uint16_t>(std::min(entry.snd_wnd() >> entry.snd_wscale(), 0xffffu))};
}

Status ReceiveFin(const PendingConnection& connection, std::uint32_t then) {
  TcpSegment segment = FromPeer(connection);
  segment.fin = true;
  RETURN_IF_ERROR(ReceiveSegment(connection.fd.get(), segment));
  return Await(connection.fd.get(), then);
}

Status ShutDown(int fd, int how) {
  if (::shutdown(fd, how) != 0) {
    return SyscallError(errno, "shut a TCP connection down");
  }
  return OkStatus();
}

// Data never sent and FINs, in the order in which they were.
Status Replay(const PendingConnection& connection) {
  const int fd = connection.fd.get();
  const std::uint32_t state = connection.entry.state();
  const TcpStream& stream = connection.stream;
  const bool peer_first = state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK;
  if (peer_first) RETURN_IF_ERROR(ReceiveFin(connection, TCP_CLOSE_WAIT));
  RETURN_IF_ERROR(
      Send(fd, std::string_view(stream.sent).substr(stream.sent.size() - UnsentBytes(stream))));
  if (HasOwnFin(state)) RETURN_IF_ERROR(ShutDown(fd, SHUT_WR));
  if (state == TCP_CLOSING) RETURN_IF_ERROR(ReceiveFin(connection, TCP_CLOSING));
  if (state == TCP_FIN_WAIT2) {
    TcpSegment segment = FromPeer(connection);
    ++segment.acknowledged;  // our FIN
    RETURN_IF_ERROR(ReceiveSegment(fd, segment));
    RETURN_IF_ERROR(Await(fd, TCP_FIN_WAIT2));
  }
  const bool shut_read = (connection.entry.shutdown() & image::SHUTDOWN_READ) != 0;
  return shut_read ? ShutDown(fd, SHUT_RD) : OkStatus();
}

Status Knock(const PendingConnection& connection) {
  const int fd = connection.fd.get();
  RETURN_IF_ERROR(SetStatusFlags(fd, connection.entry.flags() | O_NONBLOCK));
  const InetSockaddr remote(connection.remote);
  const auto bytes = remote.bytes();
  const int result = ::connect(fd, reinterpret_cast<const sockaddr*>(bytes.data()),
                               static_cast<socklen_t>(bytes.size()));
  // Refused or unreachable by now: as the program would hear of it.
  (void)result;
  return SetStatusFlags(fd, connection.entry.flags());
}

Status Resume(PendingConnection& connection) {
  const int fd = connection.fd.get();
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR, 0));
  return connection.entry.state() == TCP_SYN_SENT ? Knock(connection) : Replay(connection);
}

Status Settle(const PendingConnection& connection) {
  const int fd = connection.fd.get();
  RETURN_IF_ERROR(SettleBuffers(fd, connection.entry.opts()));
  RETURN_IF_ERROR(RestoreOptionsBeforeBind(fd, connection.entry.opts()));
  return RestoreSocketOptions(fd, connection.entry.opts());
}

}  // namespace

Result<UniqueFd> MakeConnection(const image::InetSkEntry& entry, TcpStream stream,
                                const InetAddress& local, const InetAddress& remote,
                                FileRestoreContext& context) {
  RETURN_IF_ERROR(Check(stream));
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(static_cast<int>(entry.family()),
                                                       SOCK_STREAM, IPPROTO_TCP));
  RETURN_IF_ERROR(BeginRepair(fd.get()));
  RETURN_IF_ERROR(RestoreInetOptionsBeforeBind(fd.get(), entry, context.actor()));
  RETURN_IF_ERROR(EnlargeBuffers(fd.get(), entry.opts(), stream));
  const std::uint32_t state = entry.state();
  const std::uint32_t syn = state == TCP_SYN_SENT ? 1 : 0;
  if (state != TCP_SYN_SENT) {
    const auto first =
        stream.receive_end(state) - static_cast<std::uint32_t>(stream.received.size());
    RETURN_IF_ERROR(SetSequence(fd.get(), kReceiveQueue, first));
  }
  const auto first = stream.send_end(state) - syn - static_cast<std::uint32_t>(stream.sent.size());
  RETURN_IF_ERROR(SetSequence(fd.get(), kSendQueue, first));
  RETURN_IF_ERROR(BindLocal(fd.get(), local, context));
  if (state != TCP_SYN_SENT) {
    RETURN_IF_ERROR(Establish(fd.get(), entry, stream, remote, context));
  }
  RETURN_IF_ERROR(RestoreInetOptions(fd.get(), entry, context.actor()));
  ASSIGN_OR_RETURN(UniqueFd own, Duplicate(fd.get()));
  context.Connections().push_back({.fd = std::move(own),
                                   .entry = entry,
                                   .stream = std::move(stream),
                                   .local = local,
                                   .remote = remote});
  return fd;
}

Status ResumeConnections(std::vector<PendingConnection>& connections,
                         const std::function<Status()>& make_rules) {
  const auto for_each = [&](const std::function<Status(PendingConnection&)>& step) -> Status {
    for (PendingConnection& connection : connections) {
      RETURN_IF_ERROR(Annotate(step(connection), "TCP connection " + connection.local.ToText() +
                                                     " to " + connection.remote.ToText()));
    }
    return OkStatus();
  };
  // All take packets before one sends any: both ends of a connection may be here.
  RETURN_IF_ERROR(for_each([&](PendingConnection& connection) {
    return make_rules ? TakeOwnSegments(connection.fd.get())
                      : SetSocketFilter(connection.fd.get(), {});
  }));
  RETURN_IF_ERROR(for_each(Resume));
  if (make_rules) {
    RETURN_IF_ERROR(make_rules());
    RETURN_IF_ERROR(for_each(
        [](PendingConnection& connection) { return SetSocketFilter(connection.fd.get(), {}); }));
  }
  RETURN_IF_ERROR(for_each(Settle));
  connections.clear();
  return OkStatus();
}

}  // namespace stasis::engine
