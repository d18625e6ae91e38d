// /proc/PID/net/tcp, udp, raw, icmp and those of IPv6: the sockets of a network namespace.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

struct NetSocket {
  std::uint64_t inode = 0;
  std::vector<std::uint32_t> remote_words;  ///< Network order; one for IPv4, four for IPv6.
  std::uint16_t remote_port = 0;            ///< Host order.
};

/// The socket with that inode in the text of a table. NotFound when it is not there.
Result<NetSocket> FindNetSocket(std::string_view text, std::uint64_t inode);

}  // namespace stasis::engine
