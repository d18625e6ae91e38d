// A child with a network and names (UTS) of its own, and what leads from one to the other: a listening socket and the
// namespace itself, which the root has open. A container's rights do not allow it.
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>

#include "rights.h"

namespace {

constexpr int kPort = 7077;
constexpr char kTtl[] = "/proc/sys/net/ipv4/ip_default_ttl";
constexpr char kName[] = "\0stasis-other-networks";

sockaddr_in Address() {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(kPort);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int Listener() {
  const sockaddr_in address = Address();
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(listen(fd, 4) == 0);
  return fd;
}

// A name that each network has for itself.
int WithName(int (*step)(int, const sockaddr*, socklen_t), int fd) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, kName, sizeof(kName));
  return step(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

void SetLoopbackUp() {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq request = {};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  CHECK(ioctl(fd, SIOCSIFFLAGS, &request) == 0);
  close(fd);
}

void Send(int channel, int fd) { target::SendRights(channel, "x", {fd}); }

int Receive(int channel) { return target::ReceiveRights(channel, "x", 0).at(0); }

std::string Hostname() {
  utsname names = {};
  CHECK(uname(&names) == 0);
  return std::string(names.nodename) + "." + names.domainname;
}

void Child(const char* folder, int channel) {
  CHECK(unshare(CLONE_NEWNET | CLONE_NEWUTS) == 0);
  SetLoopbackUp();
  CHECK(sethostname("inner", 5) == 0 && setdomainname("example", 7) == 0);
  const int ttl = open(kTtl, O_WRONLY);
  CHECK(write(ttl, "77", 2) == 2);
  close(ttl);
  const int named = socket(AF_UNIX, SOCK_DGRAM, 0);
  CHECK(WithName(bind, named) == 0);
  const int listener = Listener();
  Send(channel, listener);
  close(listener);

  target::WaitFor(target::In(folder, "go"));

  CHECK(Hostname() == "inner.example");
  CHECK(target::Read(kTtl) == "77\n");
  CHECK(WithName(connect, socket(AF_UNIX, SOCK_DGRAM, 0)) == 0);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Address();
  CHECK(connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  char byte = 0;
  CHECK(read(client, &byte, 1) == 1 && byte == 'y');
  _exit(0);
}

}  // namespace

int main(int, char** argv) {
  int channel[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, channel) == 0);
  const std::string names = Hostname(), ttl = target::Read(kTtl);
  const pid_t probe = fork();
  if (probe == 0) _exit(unshare(CLONE_NEWNET | CLONE_NEWUTS) == 0 ? 0 : 1);
  if (target::ExitCode(probe) != 0) {
    std::puts("no right to namespaces");
    return 77;
  }
  const pid_t child = fork();
  if (child == 0) Child(argv[1], channel[1]);
  const int listener = Receive(channel[0]);
  const std::string link = "/proc/" + std::to_string(child) + "/ns/net";
  const int network = open(link.c_str(), O_RDONLY);
  CHECK(network >= 0);

  target::PassCheckpoint(argv[1]);

  CHECK(Hostname() == names && target::Read(kTtl) == ttl);
  struct stat held = {}, lived_in = {}, own = {};
  CHECK(fstat(network, &held) == 0 && stat(link.c_str(), &lived_in) == 0 &&
        stat("/proc/self/ns/net", &own) == 0);
  CHECK_EQ(held.st_ino, lived_in.st_ino);
  CHECK(held.st_ino != own.st_ino);
  CHECK(WithName(connect, socket(AF_UNIX, SOCK_DGRAM, 0)) != 0 && errno == ECONNREFUSED);
  const int accepted = accept(listener, nullptr, nullptr);
  CHECK(accepted >= 0 && write(accepted, "y", 1) == 1);
  CHECK_EQ(target::ExitCode(child), 0);
}
