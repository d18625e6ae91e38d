// Multicast groups, and datagram sockets that share a port or are shut for writing.
#include "inet.h"

namespace {

int Datagrams(in_port_t port, bool shared) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  CHECK(fd >= 0);
  if (shared) target::SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = port;
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  const int first = Datagrams(0, true);
  const in_port_t port = target::LocalAddress(first).sin_port;
  const int second = Datagrams(port, true);
  target::SetOption(first, SOL_SOCKET, SO_REUSEADDR, 0);
  ip_mreqn group = {};
  group.imr_multiaddr.s_addr = inet_addr("239.77.7.7");
  group.imr_ifindex = 1;
  CHECK(setsockopt(first, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group)) == 0);
  const int shut = socket(AF_INET, SOCK_DGRAM, 0);
  target::Connect(shut, target::LocalAddress(first));
  CHECK(shutdown(shut, SHUT_WR) == 0);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::Option(first, SOL_SOCKET, SO_REUSEADDR), 0);
  CHECK_EQ(target::Option(second, SOL_SOCKET, SO_REUSEADDR), 1);
  CHECK_EQ(target::LocalAddress(second).sin_port, port);
  // A member already.
  CHECK(setsockopt(first, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group)) == -1);
  CHECK_EQ(errno, EADDRINUSE);
  CHECK(send(shut, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
}
