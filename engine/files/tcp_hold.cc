// Source  tcp(7), socket(7), net/ipv4/tcp.c do_tcp_setsockopt, __tcp_close; net/core/filter.c
// Rule    A socket's filter sees each segment before TCP does; what it drops is not acknowledged, so the
//         peer sends it again. It needs no firewall, and no right.
// Rule    TCP_REPAIR sets the socket's reuse to a value of its own, and 0 when it ends.
// Rule    -1 (TCP_REPAIR_OFF_NO_WP) ends it without a window probe.
#include "engine/files/tcp_hold.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <array>
#include <cerrno>
#include <utility>

#include "engine/files/description.h"
#include "engine/files/socket.h"

namespace stasis::engine {

Status DropPackets(int fd) {
  constexpr std::array<sock_filter, 1> kNone = {
      {{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0}}};
  return SetSocketFilter(fd, kNone);
}

Result<TcpHold> TcpHold::Take(int fd) {
  if (SocketOption(fd, SOL_SOCKET, SO_LOCK_FILTER).value_or(0) != 0) {
    return Unimplemented("its filter is locked (SO_LOCK_FILTER)");
  }
  TcpHold hold;
  ASSIGN_OR_RETURN(hold.filter_, SocketFilter(fd));
  ASSIGN_OR_RETURN(hold.reuse_, SocketOption(fd, SOL_SOCKET, SO_REUSEADDR));
  const Status status = SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR, 1);
  if (ErrnoOf(status) == EPERM) {
    return PermissionDenied(
        "established TCP connections are kept with CAP_NET_ADMIN in the user namespace of their "
        "network namespace only (TCP_REPAIR)");
  }
  RETURN_IF_ERROR(status);
  Result<UniqueFd> own = Duplicate(fd);
  if (!own.ok()) {
    (void)SetSocketOption(fd, IPPROTO_TCP, TCP_REPAIR, -1);  // already reporting worse
    (void)SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, hold.reuse_);
    return own.status();
  }
  hold.fd_ = *std::move(own);  // its end undoes from here on
  RETURN_IF_ERROR(DropPackets(fd));
  return hold;
}

TcpHold& TcpHold::operator=(TcpHold&& other) noexcept {
  Resume();
  fd_ = std::move(other.fd_);
  filter_ = std::move(other.filter_);
  reuse_ = other.reuse_;
  return *this;
}

void TcpHold::Resume() {
  if (!fd_) return;
  // None of these fails on a socket that took their opposites.
  (void)SetSocketOption(fd_.get(), IPPROTO_TCP, TCP_REPAIR, -1);
  (void)SetSocketOption(fd_.get(), SOL_SOCKET, SO_REUSEADDR, reuse_);
  (void)SetSocketFilter(fd_.get(), filter_);
  fd_.Reset();
}

}  // namespace stasis::engine
