// Unix sockets on paths that bind(2) was given relatively, or that were renamed or linked since.
#include <sys/socket.h>
#include <sys/un.h>

#include "target.h"

namespace {

sockaddr_un Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  CHECK(path.size() < sizeof(address.sun_path));
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

int Bound(int type, const std::string& path) {
  const int fd = socket(AF_UNIX, type, 0);
  const sockaddr_un address = Address(path);
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

int Connected(int type, const std::string& path) {
  const int fd = socket(AF_UNIX, type, 0);
  const sockaddr_un address = Address(path);
  CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  CHECK(chdir(argv[1]) == 0);
  const int relative = Bound(SOCK_STREAM, "relative");
  const int renamed = Bound(SOCK_STREAM, "before");
  CHECK(rename("before", "after") == 0);
  const int linked = Bound(SOCK_STREAM, "first");
  CHECK(link("first", "second") == 0 && unlink("first") == 0);
  CHECK(listen(relative, 3) == 0 && listen(renamed, 3) == 0 && listen(linked, 3) == 0);
  const int log = Bound(SOCK_DGRAM, "log");
  const int client = Connected(SOCK_DGRAM, "log");
  CHECK_EQ(send(client, "one", 3, 0), 3);

  target::PassCheckpoint(argv[1]);

  Connected(SOCK_STREAM, "relative");
  CHECK(accept(relative, nullptr, nullptr) >= 0);
  Connected(SOCK_STREAM, target::In(argv[1], "after"));
  CHECK(accept(renamed, nullptr, nullptr) >= 0);
  Connected(SOCK_STREAM, target::In(argv[1], "second"));
  CHECK(accept(linked, nullptr, nullptr) >= 0);
  CHECK_EQ(send(client, "two", 3, 0), 3);
  char got[8];
  CHECK_EQ(recv(log, got, sizeof(got), MSG_DONTWAIT), 3);
  CHECK(memcmp(got, "one", 3) == 0);
  CHECK_EQ(recv(log, got, sizeof(got), MSG_DONTWAIT), 3);
  CHECK(memcmp(got, "two", 3) == 0);
}
