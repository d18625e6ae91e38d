// Established TCP connections come back as a peer's reset would leave them, or untouched.
#include <poll.h>
#include <sys/epoll.h>

#include "inet.h"

int main(int, char** argv) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  // The connection that the checkpoint severs keeps the port for a while (TIME_WAIT).
  const int on = 1;
  CHECK(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0);
  target::Bind(listener);
  CHECK(listen(listener, 8) == 0);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  target::Connect(client, target::LocalAddress(listener));
  const int server = accept(listener, nullptr, nullptr);
  CHECK(server >= 0);
  const int set = epoll_create1(0);
  epoll_event event = {.events = EPOLLIN, .data = {.fd = server}};
  CHECK(epoll_ctl(set, EPOLL_CTL_ADD, server, &event) == 0);

  target::PassCheckpoint(argv[1]);

  if (target::Exists(target::In(argv[1], "restored"))) {
    CHECK_EQ(epoll_wait(set, &event, 1, 1000), 1);
    CHECK_EQ(event.data.fd, server);
    CHECK(event.events & EPOLLHUP);
    char byte = 0;
    const ssize_t got = recv(server, &byte, 1, MSG_DONTWAIT);
    CHECK(got == 0 || (got == -1 && errno == ECONNRESET));
    CHECK(send(client, "x", 1, MSG_NOSIGNAL) == -1);
  } else {
    CHECK_EQ(epoll_wait(set, &event, 1, 0), 0);
    CHECK_EQ(send(client, "x", 1, 0), 1);
    CHECK_EQ(epoll_wait(set, &event, 1, 1000), 1);
  }
  // Either way the program can serve the next client.
  const int next = socket(AF_INET, SOCK_STREAM, 0);
  target::Connect(next, target::LocalAddress(listener));
  CHECK(accept(listener, nullptr, nullptr) >= 0);
}
