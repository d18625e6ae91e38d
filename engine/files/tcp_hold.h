// A TCP connection that stands still.
#pragma once

#include <linux/filter.h>

#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

/// Drops all packets that reach the socket.
Status DropPackets(int fd);

/// While it lives, the connection takes no packets, so that its peer keeps what it sends, and is in
/// repair mode (TCP_REPAIR). Its end lets the connection go on as it was.
class TcpHold {
 public:
  /// `fd` is borrowed. PermissionDenied without CAP_NET_ADMIN over its network namespace;
  /// Unimplemented where a program locked its filter.
  static Result<TcpHold> Take(int fd);

  TcpHold(TcpHold&&) = default;
  TcpHold& operator=(TcpHold&& other) noexcept;
  ~TcpHold() { Resume(); }

  void Resume();
  /// Gives up the socket as it is: in repair mode its last close(2) sends nothing to the peer.
  void Abandon() { fd_.Reset(); }

 private:
  TcpHold() = default;

  UniqueFd fd_;
  std::vector<sock_filter> filter_;
  int reuse_ = 0;
};

}  // namespace stasis::engine
