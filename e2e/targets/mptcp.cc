// A listener of MPTCP, as Go programs have it, and a connection that a plain TCP client makes to it.
#include "inet.h"

int main(int, char** argv) {
  const int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
  if (listener < 0) {
    puts("this kernel has no MPTCP");
    return 77;
  }
  target::SetOption(listener, SOL_SOCKET, SO_REUSEADDR, 1);
  target::Bind(listener);
  CHECK(listen(listener, 17) == 0);
  const sockaddr_in address = target::LocalAddress(listener);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::LocalAddress(listener).sin_port, address.sin_port);
  CHECK_EQ(target::Option(listener, SOL_SOCKET, SO_PROTOCOL), IPPROTO_MPTCP);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  target::Connect(client, address);
  const int server = accept(listener, nullptr, nullptr);
  CHECK(server >= 0);
  CHECK_EQ(send(client, "hello", 5, 0), 5);
  char got[8];
  CHECK_EQ(recv(server, got, sizeof(got), 0), 5);
}
