// Listening TCP and bound or connected UDP sockets, IPv4 and IPv6, with their options.
#include "inet.h"

namespace {

int Listener6() {
  const int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
  CHECK(fd >= 0);
  target::SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(listen(fd, 5) == 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  target::SetOption(listener, SOL_SOCKET, SO_REUSEADDR, 1);
  target::SetOption(listener, SOL_SOCKET, SO_KEEPALIVE, 1);
  target::SetOption(listener, IPPROTO_TCP, TCP_NODELAY, 1);
  target::SetOption(listener, IPPROTO_TCP, TCP_KEEPIDLE, 123);
  target::Bind(listener);
  CHECK(listen(listener, 17) == 0);
  const int listener6 = Listener6();
  const int bound = socket(AF_INET, SOCK_DGRAM, 0);
  target::SetOption(bound, SOL_SOCKET, SO_BROADCAST, 1);
  target::Bind(bound);
  const int connected = socket(AF_INET, SOCK_DGRAM, 0);
  target::Connect(connected, target::LocalAddress(bound));
  const sockaddr_in address = target::LocalAddress(listener);
  const sockaddr_in bound_address = target::LocalAddress(bound);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::LocalAddress(listener).sin_port, address.sin_port);
  CHECK_EQ(target::LocalAddress(bound).sin_port, bound_address.sin_port);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  target::Connect(client, address);
  const int server = accept(listener, nullptr, nullptr);
  CHECK(server >= 0);
  CHECK_EQ(send(client, "hello", 5, 0), 5);
  char got[8];
  CHECK_EQ(recv(server, got, sizeof(got), 0), 5);
  CHECK_EQ(target::Option(server, SOL_SOCKET, SO_KEEPALIVE), 1);
  CHECK_EQ(target::Option(listener, SOL_SOCKET, SO_REUSEADDR), 1);
  CHECK_EQ(target::Option(listener, IPPROTO_TCP, TCP_NODELAY), 1);
  CHECK_EQ(target::Option(listener, IPPROTO_TCP, TCP_KEEPIDLE), 123);
  CHECK_EQ(target::Option(listener6, IPPROTO_IPV6, IPV6_V6ONLY), 1);
  CHECK(accept(listener6, nullptr, nullptr) == -1 && errno == EAGAIN);
  CHECK_EQ(target::Option(bound, SOL_SOCKET, SO_BROADCAST), 1);
  CHECK_EQ(send(connected, "data", 4, 0), 4);
  CHECK_EQ(recv(bound, got, sizeof(got), 0), 4);
}
