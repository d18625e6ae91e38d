// Loopback sockets for the targets.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "target.h"

namespace target {

inline sockaddr_in Loopback(in_port_t port = 0) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = port;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

inline void Bind(int fd, in_port_t port = 0) {
  const sockaddr_in address = Loopback(port);
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
}

inline sockaddr_in LocalAddress(int fd) {
  sockaddr_in address = {};
  socklen_t length = sizeof(address);
  CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return address;
}

inline void Connect(int fd, const sockaddr_in& address) {
  CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
}

inline int Option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof(value);
  CHECK(getsockopt(fd, level, name, &value, &length) == 0);
  return value;
}

inline void SetOption(int fd, int level, int name, int value) {
  CHECK(setsockopt(fd, level, name, &value, sizeof(value)) == 0);
}

}  // namespace target
