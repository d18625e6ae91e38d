// Unix socket pairs with data on the way: stream, datagram and sequenced packets; one end shut
// down.
#include <sys/socket.h>

#include "target.h"

namespace {

struct Pair {
  int a, b;
};

Pair Make(int type) {
  int fds[2];
  CHECK(socketpair(AF_UNIX, type, 0, fds) == 0);
  return {fds[0], fds[1]};
}

void Send(int fd, const char* text) { CHECK_EQ(send(fd, text, strlen(text), 0), strlen(text)); }

void Expect(int fd, const std::string& text) {
  char got[64];
  CHECK_EQ(recv(fd, got, sizeof(got), MSG_DONTWAIT), text.size());
  CHECK(text == std::string(got, text.size()));
}

}  // namespace

int main(int, char** argv) {
  const Pair stream = Make(SOCK_STREAM);
  const Pair packets = Make(SOCK_SEQPACKET);
  const Pair datagrams = Make(SOCK_DGRAM);
  const Pair closing = Make(SOCK_STREAM);
  const int size = 131072;
  CHECK(setsockopt(stream.a, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) == 0);
  Send(stream.a, "to b");
  Send(stream.b, "to a");
  Send(packets.a, "one");
  Send(packets.a, "two");
  Send(datagrams.a, "first");
  Send(datagrams.a, "second");
  Send(closing.a, "bye");
  CHECK(shutdown(closing.a, SHUT_WR) == 0);

  target::PassCheckpoint(argv[1]);

  Expect(stream.b, "to b");
  Expect(stream.a, "to a");
  Expect(packets.b, "one");
  Expect(packets.b, "two");
  Expect(datagrams.b, "first");
  Expect(datagrams.b, "second");
  Expect(closing.b, "bye");
  char byte = 0;
  CHECK_EQ(recv(closing.b, &byte, 1, MSG_DONTWAIT), 0);
  Send(closing.b, "still open this way");
  Expect(closing.a, "still open this way");
  CHECK(recv(stream.a, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  int got_size = 0;
  socklen_t length = sizeof(got_size);
  CHECK(getsockopt(stream.a, SOL_SOCKET, SO_SNDBUF, &got_size, &length) == 0);
  CHECK_EQ(got_size, 2 * size);  // the kernel doubles what is asked (socket(7))
}
