// Image   "tcp-stream-INODE": an entry, the received bytes, the sent ones. Sequence numbers are as repair
//         mode shows them, a FIN counted; lengths are those of the bytes alone
// Source  tcp(7), net/ipv4/tcp.c tcp_ioctl, tcp_inq, tcp_recvmsg_locked, tcp_peek_sndq; tested on 6.18
// Rule    In repair mode MSG_PEEK reads the queue that TCP_REPAIR_QUEUE chose. The send queue is given as
//         whole segments, whatever the length asked for: its first bytes may be acknowledged already.
// Rule    SIOCOUTQ counts our FIN until it is acknowledged, SIOCINQ never the peer's. SIOCINQ ends at an
//         urgent byte, unless SO_OOBINLINE.
#include "engine/files/tcp_stream.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "engine/files/socket.h"
#include "engine/image/image_file.h"

namespace stasis::engine {
namespace {

constexpr int kNoQueue = 0, kReceiveQueue = 1, kSendQueue = 2;  // TCP_REPAIR_QUEUE
constexpr std::uint32_t kNegotiated = TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE;
constexpr std::size_t kSegmentBytes = 65536 + 4096;  // none is longer

constexpr std::uint32_t Set(std::initializer_list<int> states) {
  std::uint32_t bits = 0;
  for (const int state : states) bits |= 1u << state;
  return bits;
}
bool Has(std::uint32_t states, std::uint32_t state) {
  return state < 32 && (states >> state & 1) != 0;
}

Result<std::uint32_t> Count(int fd, unsigned long request, const char* what) {
  int bytes = 0;
  if (::ioctl(fd, request, &bytes) != 0) {
    return SyscallError(errno, what);
  }
  return static_cast<std::uint32_t>(std::max(bytes, 0));
}

Result<std::uint32_t> SequenceOf(int fd, int queue) {
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
  return SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_QUEUE_SEQ);
}

Result<std::string> Peek(int fd, std::size_t limit) {
  std::string bytes(limit, '\0');
  const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && errno != EAGAIN) {
    return SyscallError(errno, "peek into a TCP queue");
  }
  bytes.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  return bytes;
}

// SO_PEEK_OFF, which peeking would use and move, is -1 while this lives.
class PeekFromStart {
 public:
  explicit PeekFromStart(int fd)
      : fd_(fd), saved_(SocketOption(fd, SOL_SOCKET, SO_PEEK_OFF).value_or(-1)) {
    if (saved_ >= 0) (void)SetSocketOption(fd_, SOL_SOCKET, SO_PEEK_OFF, -1);
  }
  PeekFromStart(const PeekFromStart&) = delete;
  PeekFromStart& operator=(const PeekFromStart&) = delete;
  ~PeekFromStart() {
    if (saved_ >= 0) (void)SetSocketOption(fd_, SOL_SOCKET, SO_PEEK_OFF, saved_);
  }

 private:
  int fd_;
  int saved_;
};

// Unread bytes up to the end, or Unimplemented where urgent data is among them: its mark would be lost.
Result<std::uint32_t> CountReceived(int fd) {
  ASSIGN_OR_RETURN(const std::uint32_t count, Count(fd, SIOCINQ, "SIOCINQ"));
  ASSIGN_OR_RETURN(const int inlined, SocketOption(fd, SOL_SOCKET, SO_OOBINLINE));
  if (inlined != 0) return count;
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_OOBINLINE, 1));
  const Result<std::uint32_t> all = Count(fd, SIOCINQ, "SIOCINQ");
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_OOBINLINE, 0));
  RETURN_IF_ERROR(all.status());
  if (*all != count) return Unimplemented("urgent data that nobody has read");
  return count;
}

Status ReadReceived(int fd, TcpStream& stream) {
  ASSIGN_OR_RETURN(const std::uint32_t sequence, SequenceOf(fd, kReceiveQueue));
  ASSIGN_OR_RETURN(const std::uint32_t count, CountReceived(fd));
  if (count > 0) {
    const PeekFromStart from_start(fd);
    // One more than there should be tells whether there is more.
    ASSIGN_OR_RETURN(stream.received, Peek(fd, std::size_t{count} + 1));
  }
  ASSIGN_OR_RETURN(const std::uint32_t again, SequenceOf(fd, kReceiveQueue));
  if (stream.received.size() != count || again != sequence) {
    return Unimplemented("urgent data, or a receive queue that changes");
  }
  stream.entry.set_inq_seq(sequence);
  stream.entry.set_inq_len(count);
  return OkStatus();
}

Status ReadSent(int fd, std::uint32_t state, TcpStream& stream) {
  ASSIGN_OR_RETURN(const std::uint32_t sequence, SequenceOf(fd, kSendQueue));
  ASSIGN_OR_RETURN(std::uint32_t count, Count(fd, SIOCOUTQ, "SIOCOUTQ"));
  ASSIGN_OR_RETURN(std::uint32_t unsent, Count(fd, SIOCOUTQNSD, "SIOCOUTQNSD"));
  const bool fin = HasOwnFin(state) && state != TCP_FIN_WAIT2;  // there it is acknowledged
  if (fin && count > 0) --count;
  if (fin && unsent > 0) --unsent;
  ASSIGN_OR_RETURN(stream.sent, Peek(fd, std::size_t{count} + kSegmentBytes));
  if (stream.sent.size() < count || (state == TCP_SYN_SENT && !stream.sent.empty())) {
    return Unimplemented("data that waits for the connection (TCP Fast Open)");
  }
  stream.sent.erase(0, stream.sent.size() - count);
  stream.entry.set_outq_seq(sequence);
  stream.entry.set_outq_len(count);
  stream.entry.set_unsq_len(std::min(unsent, count));
  return OkStatus();
}

Status ReadWindow(int fd, image::TcpStreamEntry& entry) {
  ASSIGN_OR_RETURN(const auto window,
                   SocketOption<tcp_repair_window>(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW));
  entry.set_snd_wl1(window.snd_wl1);
  entry.set_snd_wnd(window.snd_wnd);
  entry.set_max_window(window.max_window);
  entry.set_rcv_wnd(window.rcv_wnd);
  entry.set_rcv_wup(window.rcv_wup);
  return OkStatus();
}

Status ReadNegotiated(int fd, const tcp_info& info, image::TcpStreamEntry& entry) {
  entry.set_opt_mask(info.tcpi_options & kNegotiated);
  entry.set_snd_wscale(info.tcpi_snd_wscale);
  entry.set_rcv_wscale(info.tcpi_rcv_wscale);
  ASSIGN_OR_RETURN(const auto mss, SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_MAXSEG));
  entry.set_mss_clamp(mss);
  ASSIGN_OR_RETURN(const auto clock, SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_TIMESTAMP));
  entry.set_timestamp(clock);
  return OkStatus();
}

Result<TcpStream> Read(int fd, const tcp_info& info) {
  TcpStream stream;
  RETURN_IF_ERROR(ReadNegotiated(fd, info, stream.entry));
  RETURN_IF_ERROR(ReadWindow(fd, stream.entry));
  RETURN_IF_ERROR(ReadSent(fd, info.tcpi_state, stream));
  RETURN_IF_ERROR(ReadReceived(fd, stream));
  return stream;
}

}  // namespace

std::uint32_t TcpStream::receive_end(std::uint32_t state) const {
  return entry.inq_seq() - (HasPeerFin(state) ? 1 : 0);
}
std::uint32_t TcpStream::send_end(std::uint32_t state) const {
  return entry.outq_seq() - (HasOwnFin(state) ? 1 : 0);
}

bool HasPeerFin(std::uint32_t state) {
  return Has(Set({TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING}), state);
}
bool HasOwnFin(std::uint32_t state) {
  return Has(Set({TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_CLOSING}), state);
}
bool IsKeptState(std::uint32_t state) {
  return HasPeerFin(state) || HasOwnFin(state) || state == TCP_ESTABLISHED || state == TCP_SYN_SENT;
}

Result<TcpStream> ReadTcpStream(int fd, const tcp_info& info) {
  Result<TcpStream> stream = Read(fd, info);
  // While the send queue is chosen, nothing that the kernel would send really goes out.
  RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, kNoQueue));
  return stream;
}

Result<std::string> ReadClosedQueue(int fd) {
  ASSIGN_OR_RETURN(const std::uint32_t count, CountReceived(fd));
  // Peeking beyond the last byte would take the error that a reset left.
  if (count == 0) return std::string();
  const PeekFromStart from_start(fd);
  ASSIGN_OR_RETURN(std::string bytes, Peek(fd, count));
  if (bytes.size() != count) return Unimplemented("urgent data that nobody has read");
  return bytes;
}

Result<TcpStream> LoadTcpStream(const ImageSource& source, std::uint32_t inode) {
  TcpStream stream;
  ASSIGN_OR_RETURN(ImageFileReader reader,
                   ImageFileReader::Open(source, ImageName("tcp-stream", inode), "tcp-stream"));
  RETURN_IF_ERROR(reader.Record(stream.entry));
  ASSIGN_OR_RETURN(stream.received, reader.Raw(stream.entry.inq_len()));
  ASSIGN_OR_RETURN(stream.sent, reader.Raw(stream.entry.outq_len()));
  return stream;
}

}  // namespace stasis::engine
