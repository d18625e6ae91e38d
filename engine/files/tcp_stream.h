// What a TCP connection has beside its addresses: sequence numbers, queues, what was negotiated.
#pragma once

#include <netinet/tcp.h>

#include <cstdint>
#include <string>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/sockets.pb.h"

namespace stasis::engine {

struct TcpStream {
  image::TcpStreamEntry entry;
  std::string received;  ///< What nobody has read.
  std::string sent;      ///< What the peer has not acknowledged, and `unsq_len` bytes never sent.

  /// The sequence number after the last byte of each queue, a FIN not counted.
  std::uint32_t receive_end(std::uint32_t state) const;
  std::uint32_t send_end(std::uint32_t state) const;
};

/// Did the peer's FIN arrive, was ours sent, was ours acknowledged?
bool HasPeerFin(std::uint32_t state);
bool HasOwnFin(std::uint32_t state);

/// Connections whose state a descriptor shows and TCP_REPAIR can make again.
bool IsKeptState(std::uint32_t state);

/// Reads it from `fd`, which is in repair mode and takes no packets, in state `info.tcpi_state`.
Result<TcpStream> ReadTcpStream(int fd, const tcp_info& info);

/// The unread bytes of a connection that has ended. Needs no right.
Result<std::string> ReadClosedQueue(int fd);

/// The image file of the socket with that inode. NotFound without one.
Result<TcpStream> LoadTcpStream(const ImageSource& source, std::uint32_t inode);

}  // namespace stasis::engine
