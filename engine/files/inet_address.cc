#include "engine/files/inet_address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace stasis::engine {
namespace {

using GetName = int (*)(int, sockaddr*, socklen_t*);

Result<InetAddress> Get(int fd, GetName get, const char* what) {
  sockaddr_storage storage = {};
  socklen_t length = sizeof(storage);
  if (get(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    if (errno == ENOTCONN) return NotFound("not connected");
    return SyscallError(errno, what);
  }
  InetAddress address;
  address.family = storage.ss_family;
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &storage, sizeof(v4));
    address.words[0] = v4.sin_addr.s_addr;
    address.port = ntohs(v4.sin_port);
  } else if (storage.ss_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &storage, sizeof(v6));
    std::memcpy(address.words.data(), &v6.sin6_addr, sizeof(v6.sin6_addr));
    address.port = ntohs(v6.sin6_port);
    address.scope = v6.sin6_scope_id;
  } else {
    return Internal("not an internet address");
  }
  return address;
}

}  // namespace

bool InetAddress::IsWildcard() const {
  return std::ranges::all_of(words, [](std::uint32_t word) { return word == 0; });
}

std::string InetAddress::ToText() const {
  std::array<char, INET6_ADDRSTRLEN> text = {};
  ::inet_ntop(family, words.data(), text.data(), text.size());
  const std::string host = family == AF_INET6 ? "[" + std::string(text.data()) + "]" : text.data();
  return host + ":" + std::to_string(port);
}

Result<InetAddress> LocalAddress(int fd) { return Get(fd, ::getsockname, "getsockname"); }

Result<InetAddress> RemoteAddress(int fd) { return Get(fd, ::getpeername, "getpeername"); }

// Rule: getpeername(2) says ENOTCONN, the option tells still (inet_getname() in net/ipv4/af_inet.c); to who has no
// more room than needed, else EINVAL.
Result<InetAddress> LastRemoteAddress(int fd) {
  const auto ask = [](int of, sockaddr* address, socklen_t* size) {
    sockaddr_storage own = {};
    if (::getsockname(of, reinterpret_cast<sockaddr*>(&own), size) != 0) return -1;
    return ::getsockopt(of, SOL_SOCKET, SO_PEERNAME, address, size);
  };
  return Get(fd, ask, "SO_PEERNAME");
}

InetSockaddr::InetSockaddr(const InetAddress& address) : is_v4_(address.family == AF_INET) {
  v4_.sin_family = AF_INET;
  v4_.sin_port = htons(address.port);
  v4_.sin_addr.s_addr = address.words[0];
  v6_.sin6_family = AF_INET6;
  v6_.sin6_port = htons(address.port);
  v6_.sin6_scope_id = address.scope;
  std::memcpy(&v6_.sin6_addr, address.words.data(), sizeof(v6_.sin6_addr));
}

std::span<const std::byte> InetSockaddr::bytes() const {
  return is_v4_ ? std::as_bytes(std::span(&v4_, 1)) : std::as_bytes(std::span(&v6_, 1));
}

}  // namespace stasis::engine
