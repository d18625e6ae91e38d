// /proc/PID/net/tcp and tcp6: the TCP sockets of a network namespace.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

struct NetTcpSocket {
  std::uint64_t inode = 0;
  std::vector<std::uint32_t> remote_words;  ///< Network order; one for IPv4, four for IPv6.
  std::uint16_t remote_port = 0;            ///< Host order.
};

/// The socket with that inode in the text of the table. NotFound when it is not there.
Result<NetTcpSocket> FindNetTcpSocket(std::string_view text, std::uint64_t inode);

}  // namespace stasis::engine
