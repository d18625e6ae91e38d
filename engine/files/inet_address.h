// Internet addresses: between sockaddr, image and text.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

struct InetAddress {
  int family = AF_UNSPEC;                   ///< AF_INET or AF_INET6.
  std::array<std::uint32_t, 4> words = {};  ///< Network order; one of them for AF_INET.
  std::uint16_t port = 0;                   ///< Host order.
  std::uint32_t scope = 0;                  ///< Interface of a link-local address; 0 for others.

  std::size_t word_count() const { return family == AF_INET ? 1 : 4; }
  bool IsWildcard() const;
  /// "10.0.0.1:80", "[::1]:80".
  std::string ToText() const;
};

/// The local or the remote address of a socket; NotFound when it is not connected.
Result<InetAddress> LocalAddress(int fd);
Result<InetAddress> RemoteAddress(int fd);
/// The same of a TCP connection that has ended.
Result<InetAddress> LastRemoteAddress(int fd);

/// The address as bind(2) and connect(2) take it.
class InetSockaddr {
 public:
  explicit InetSockaddr(const InetAddress& address);
  std::span<const std::byte> bytes() const;

 private:
  sockaddr_in v4_ = {};
  sockaddr_in6 v6_ = {};
  bool is_v4_;
};

}  // namespace stasis::engine
