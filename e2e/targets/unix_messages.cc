// Files that wait in messages between unix sockets: a pipe's, an epoll set's, a socket sent through itself,
// behind bytes of a stream; the name and credentials of a sender.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <vector>

#include "rights.h"

namespace {

struct Pair {
  int a, b;
};

Pair Make(int type) {
  int fds[2];
  CHECK(socketpair(AF_UNIX, type, 0, fds) == 0);
  return {fds[0], fds[1]};
}

using target::SendRights;

std::vector<int> Receive(int fd, const std::string& text, size_t limit = 64) {
  return target::ReceiveRights(fd, text, MSG_DONTWAIT, limit);
}

void SendNamed(const sockaddr_un& to, socklen_t to_length, const char* name) {
  const int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  sockaddr_un own = {};
  own.sun_family = AF_UNIX;
  own.sun_path[0] = '\0';
  strcpy(own.sun_path + 1, name);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + strlen(name));
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&own), length) == 0);
  CHECK_EQ(sendto(fd, name, strlen(name), 0, reinterpret_cast<const sockaddr*>(&to), to_length),
           strlen(name));
  close(fd);
}

void ExpectNamed(int fd, const std::string& name) {
  char bytes[64];
  sockaddr_un from = {};
  socklen_t length = sizeof(from);
  CHECK_EQ(
      recvfrom(fd, bytes, sizeof(bytes), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length),
      name.size());
  CHECK_EQ(length, offsetof(sockaddr_un, sun_path) + 1 + name.size());
  CHECK(name == std::string(from.sun_path + 1, name.size()));
}

}  // namespace

int main(int, char** argv) {
  const Pair datagrams = Make(SOCK_DGRAM);
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK(write(ends[1], "in the pipe", 11) == 11);
  SendRights(datagrams.a, "both ends", {ends[0], ends[1]});
  close(ends[0]);
  close(ends[1]);

  // The socket itself, alone in its own queue but for us.
  SendRights(datagrams.a, "self", {datagrams.b});

  const Pair watched = Make(SOCK_STREAM);
  const int epoll = epoll_create1(0);
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = 42;
  CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, watched.a, &event) == 0);
  const Pair stream = Make(SOCK_STREAM);
  CHECK(write(stream.a, "plain", 5) == 5);
  SendRights(stream.a, "epoll", {epoll});
  close(epoll);
  CHECK(write(stream.a, "after", 5) == 5);

  const int server = socket(AF_UNIX, SOCK_DGRAM, 0);
  const std::string path = target::In(argv[1], "server");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  CHECK(path.size() < sizeof(address.sun_path));
  strcpy(address.sun_path, path.c_str());
  CHECK(bind(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const std::string one = "one-" + std::to_string(getpid()),
                    two = "two-" + std::to_string(getpid());
  SendNamed(address, sizeof(address), one.c_str());
  SendNamed(address, sizeof(address), two.c_str());

  const Pair credentials = Make(SOCK_SEQPACKET);
  const int on = 1;
  CHECK(setsockopt(credentials.b, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0);
  CHECK(write(credentials.a, "me", 2) == 2);

  target::PassCheckpoint(argv[1]);

  const std::vector<int> pipe_ends = Receive(datagrams.b, "both ends");
  CHECK_EQ(pipe_ends.size(), 2);
  char bytes[64];
  CHECK_EQ(read(pipe_ends[0], bytes, sizeof(bytes)), 11);
  CHECK(write(pipe_ends[1], "again", 5) == 5);
  CHECK_EQ(read(pipe_ends[0], bytes, sizeof(bytes)), 5);
  const std::vector<int> self = Receive(datagrams.b, "self");
  CHECK_EQ(self.size(), 1);
  CHECK(write(datagrams.a, "through", 7) == 7);
  CHECK_EQ(read(self[0], bytes, sizeof(bytes)), 7);

  CHECK(Receive(stream.b, "plain", 5).empty());
  const std::vector<int> epolls = Receive(stream.b, "epoll");
  CHECK_EQ(epolls.size(), 1);
  CHECK(Receive(stream.b, "after").empty());
  CHECK_EQ(epoll_wait(epolls[0], &event, 1, 0), 0);
  CHECK(write(watched.b, "x", 1) == 1);
  CHECK_EQ(epoll_wait(epolls[0], &event, 1, 0), 1);
  CHECK_EQ(event.data.u64, 42);

  ExpectNamed(server, one);
  ExpectNamed(server, two);

  iovec part = {bytes, sizeof(bytes)};
  alignas(cmsghdr) char control[256] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  CHECK_EQ(recvmsg(credentials.b, &message, MSG_DONTWAIT), 2);
  const cmsghdr* const head = CMSG_FIRSTHDR(&message);
  CHECK(head != nullptr);
  CHECK_EQ(head->cmsg_type, SCM_CREDENTIALS);
  ucred from = {};
  memcpy(&from, CMSG_DATA(head), sizeof(from));
  CHECK_EQ(from.pid, getpid());
  CHECK_EQ(from.uid, getuid());
}
