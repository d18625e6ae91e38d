// Unix connections: the name of an accepted one, waiting for accept(2); sockets on deleted
// paths, one under another; a datagram socket whose peer has closed; who the peer is (SO_PEERCRED).
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>

#include "target.h"

namespace {

struct Name {
  explicit Name(const std::string& path) {
    address.sun_family = AF_UNIX;
    CHECK(path.size() < sizeof(address.sun_path));
    strcpy(address.sun_path, path.c_str());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
  sockaddr_un address = {};
};

int Bound(int type, const std::string& path) {
  const int fd = socket(AF_UNIX, type, 0);
  CHECK(bind(fd, Name(path).get(), sizeof(sockaddr_un)) == 0);
  return fd;
}

int Connected(int type, const std::string& path) {
  const int fd = socket(AF_UNIX, type, 0);
  CHECK(connect(fd, Name(path).get(), sizeof(sockaddr_un)) == 0);
  return fd;
}

void Pass(int from, int to) {
  char bytes[16];
  CHECK(write(from, "hello", 5) == 5);
  CHECK_EQ(recv(to, bytes, sizeof(bytes), MSG_DONTWAIT), 5);
}

std::string PathOf(int (*name)(int, sockaddr*, socklen_t*), int fd) {
  sockaddr_un address = {};
  socklen_t length = sizeof(address);
  CHECK(name(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return length > offsetof(sockaddr_un, sun_path) ? address.sun_path : "";
}

pid_t PeerPid(int fd) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0);
  return peer.pid;
}

}  // namespace

int main(int, char** argv) {
  const std::string path = target::In(argv[1], "server");
  const int listener = Bound(SOCK_STREAM, path);
  CHECK(listen(listener, 5) == 0);
  int child_end[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, child_end) == 0);
  const int client = Connected(SOCK_STREAM, path);
  const int accepted = accept(listener, nullptr, nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const int own = Connected(SOCK_STREAM, path);
    CHECK(write(child_end[1], "c", 1) == 1);
    char byte;
    CHECK(read(child_end[1], &byte, 1) == 1);
    CHECK(own >= 0);
    _exit(0);
  }
  char byte = 0;
  CHECK(read(child_end[0], &byte, 1) == 1);
  const int of_child = accept(listener, nullptr, nullptr);
  CHECK_EQ(PeerPid(of_child), child);

  const int waiting = Connected(SOCK_STREAM, path);
  const int also_waiting = Connected(SOCK_STREAM, path);

  const std::string ghost = target::In(argv[1], "ghost");
  const int lower = Bound(SOCK_DGRAM, ghost);
  const int to_lower = Connected(SOCK_DGRAM, ghost);
  CHECK(unlink(ghost.c_str()) == 0);
  const int upper = Bound(SOCK_DGRAM, ghost);
  const int to_upper = Connected(SOCK_DGRAM, ghost);
  CHECK(write(to_lower, "before", 6) == 6);

  int gone[2];
  CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, gone) == 0);
  CHECK(write(gone[1], "farewell", 8) == 8);
  close(gone[1]);

  target::PassCheckpoint(argv[1]);

  CHECK(PathOf(getsockname, of_child) == path);
  Pass(client, accepted);
  Pass(accepted, client);
  CHECK_EQ(PeerPid(of_child), child);
  CHECK_EQ(PeerPid(accepted), getpid());

  const int first = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
  Pass(waiting, first);
  Pass(first, waiting);
  CHECK_EQ(PeerPid(first), getpid());
  const int second = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
  Pass(also_waiting, second);
  pollfd more = {listener, POLLIN, 0};
  CHECK_EQ(poll(&more, 1, 0), 0);

  char bytes[16];
  CHECK_EQ(recv(lower, bytes, sizeof(bytes), MSG_DONTWAIT), 6);
  Pass(to_lower, lower);
  Pass(to_upper, upper);
  Pass(Connected(SOCK_DGRAM, ghost), upper);
  CHECK(PathOf(getsockname, lower) == ghost);

  CHECK_EQ(recv(gone[0], bytes, sizeof(bytes), MSG_DONTWAIT), 8);
  CHECK(send(gone[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED);

  CHECK(write(child_end[0], "v", 1) == 1);
  CHECK_EQ(target::ExitCode(child), 0);
}
