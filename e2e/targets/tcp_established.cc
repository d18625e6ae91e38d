// TCP connections that go on (--tcp-established): data on its way in both directions, half-closed ones,
// and one over IPv6.
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "inet.h"

namespace {

constexpr int kQueued = 300000;

struct Pair {
  int client = -1, server = -1;
};

int Listener(int family) {
  const int fd = socket(family, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  target::SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET) {
    target::Bind(fd);
  } else {
    sockaddr_in6 address = {};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_loopback;
    CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  }
  CHECK(listen(fd, 8) == 0);
  return fd;
}

Pair Connected(int family, int listener) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  CHECK(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  Pair pair;
  pair.client = socket(family, SOCK_STREAM, 0);
  CHECK(connect(pair.client, reinterpret_cast<const sockaddr*>(&address), length) == 0);
  pair.server = accept(listener, nullptr, nullptr);
  CHECK(pair.server >= 0);
  return pair;
}

void Write(int fd, int bytes, char first) {
  std::string text(static_cast<size_t>(bytes), '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(first + i % 251);
  CHECK_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT), bytes);
}

void Read(int fd, int bytes, char first) {
  std::string text(static_cast<size_t>(bytes), '\0');
  CHECK_EQ(recv(fd, text.data(), text.size(), MSG_WAITALL), bytes);
  for (size_t i = 0; i < text.size(); ++i) {
    CHECK(text[i] == static_cast<char>(first + i % 251));
  }
}

void ReadEnd(int fd) {
  char byte;
  CHECK_EQ(recv(fd, &byte, 1, 0), 0);
}

void Talk(const Pair& pair) {
  Write(pair.client, 1000, 'a');
  Write(pair.server, 1000, 'b');
  Read(pair.server, 1000, 'a');
  Read(pair.client, 1000, 'b');
}

int State(int fd) {
  tcp_info info = {};
  socklen_t length = sizeof(info);
  CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
  return info.tcpi_state;
}

}  // namespace

int main(int, char** argv) {
  const int listener = Listener(AF_INET), listener6 = Listener(AF_INET6);
  const Pair idle = Connected(AF_INET, listener), idle6 = Connected(AF_INET6, listener6);
  target::SetOption(idle.client, IPPROTO_TCP, TCP_NODELAY, 1);
  target::SetOption(idle.client, SOL_SOCKET, SO_KEEPALIVE, 1);
  target::SetOption(idle.client, IPPROTO_TCP, TCP_KEEPIDLE, 123);
  const int buffer = target::Option(idle.client, SOL_SOCKET, SO_RCVBUF);
  // More than fits: some of it is still with the sender.
  const Pair queued = Connected(AF_INET, listener);
  Write(queued.client, kQueued, 'c');
  Write(queued.server, kQueued, 'd');
  const Pair half = Connected(AF_INET, listener), half6 = Connected(AF_INET6, listener6);
  Write(half.client, 10, 'e');
  CHECK(shutdown(half.client, SHUT_WR) == 0);
  CHECK(shutdown(half6.server, SHUT_WR) == 0);
  ReadEnd(half6.client);
  while (State(half.client) != TCP_FIN_WAIT2 || State(half6.server) != TCP_FIN_WAIT2) {
    target::Sleep(1);
  }
  const Pair closed = Connected(AF_INET, listener);
  Write(closed.client, 5, 'f');
  CHECK(shutdown(closed.client, SHUT_WR) == 0 && shutdown(closed.server, SHUT_WR) == 0);
  while (State(closed.server) != TCP_CLOSE || State(closed.client) != TCP_CLOSE) target::Sleep(1);

  target::PassCheckpoint(argv[1]);

  Talk(idle);
  Talk(idle6);
  CHECK_EQ(target::Option(idle.client, IPPROTO_TCP, TCP_NODELAY), 1);
  CHECK_EQ(target::Option(idle.client, IPPROTO_TCP, TCP_KEEPIDLE), 123);
  CHECK_EQ(target::Option(idle.client, SOL_SOCKET, SO_REUSEADDR), 0);
  CHECK(target::Option(idle.client, SOL_SOCKET, SO_RCVBUF) >= buffer);
  Read(queued.server, kQueued, 'c');
  Read(queued.client, kQueued, 'd');
  Talk(queued);
  CHECK_EQ(State(half.client), TCP_FIN_WAIT2);
  CHECK_EQ(State(half.server), TCP_CLOSE_WAIT);
  Read(half.server, 10, 'e');
  ReadEnd(half.server);
  Write(half.server, 10, 'g');
  Read(half.client, 10, 'g');
  ReadEnd(half6.client);
  Write(half6.client, 10, 'h');
  Read(half6.server, 10, 'h');
  CHECK(close(half6.client) == 0);
  ReadEnd(half6.server);
  Read(closed.server, 5, 'f');
  ReadEnd(closed.server);
  ReadEnd(closed.client);
  CHECK(send(closed.client, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  Talk(Connected(AF_INET, listener));
}
