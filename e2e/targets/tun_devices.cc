// Devices of /dev/net/tun in a network of the program's own: one with a queue, one with two of which one is detached, one
// that lasts by itself, one that nobody has chosen yet. A container's rights do not allow it.
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>

#include "target.h"

namespace {

constexpr in_addr_t kOwn = 0xC0000201, kOther = 0xC0000202;  // 192.0.2.1, 192.0.2.2
constexpr int kTwo = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR;
constexpr int kHeaderBytes = 12, kSendBytes = 77'777;

int Open() {
  const int fd = open("/dev/net/tun", O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

ifreq Named(const char* name) {
  ifreq request = {};
  std::strcpy(request.ifr_name, name);
  return request;
}

int Attach(const char* name, int flags) {
  const int fd = Open();
  ifreq request = Named(name);
  request.ifr_flags = static_cast<short>(flags);
  CHECK(ioctl(fd, TUNSETIFF, &request) == 0);
  return fd;
}

int FlagsOf(int fd, const char* name) {
  ifreq request = {};
  CHECK(ioctl(fd, TUNGETIFF, &request) == 0 && std::strcmp(request.ifr_name, name) == 0);
  return static_cast<std::uint16_t>(request.ifr_flags);
}

void BringUp(const char* name) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq request = Named(name);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(kOwn);
  std::memcpy(&request.ifr_addr, &address, sizeof(address));
  CHECK(ioctl(fd, SIOCSIFADDR, &request) == 0);
  address.sin_addr.s_addr = htonl(0xFFFFFF00);
  std::memcpy(&request.ifr_netmask, &address, sizeof(address));
  CHECK(ioctl(fd, SIOCSIFNETMASK, &request) == 0);
  request = Named(name);
  request.ifr_flags = IFF_UP;
  CHECK(ioctl(fd, SIOCSIFFLAGS, &request) == 0);
  close(fd);
}

// What is sent to the other address comes out of the device.
void CheckSends(int fd) {
  const int sender = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(7);
  to.sin_addr.s_addr = htonl(kOther);
  CHECK(sendto(sender, "word", 4, 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 4);
  close(sender);
  while (true) {
    char packet[2000];
    const ssize_t got = read(fd, packet, sizeof(packet));
    CHECK(got > 0);
    // Others are the kernel's own, of IPv6.
    if (packet[0] >> 4 != 4) continue;
    CHECK(got == 32 && std::memcmp(packet + 28, "word", 4) == 0);
    return;
  }
}

bool IsThere(const char* name) { return if_nametoindex(name) != 0; }

}  // namespace

int main(int, char** argv) {
  if (unshare(CLONE_NEWNET) != 0 || access("/dev/net/tun", W_OK) != 0) {
    std::puts("no right to a network, or no /dev/net/tun");
    return 77;
  }
  const int one = Attach("one", IFF_TUN | IFF_NO_PI);
  BringUp("one");
  CheckSends(one);
  const int first = Attach("two", kTwo);
  int header = kHeaderBytes, bytes = kSendBytes;
  CHECK(ioctl(first, TUNSETVNETHDRSZ, &header) == 0 && ioctl(first, TUNSETSNDBUF, &bytes) == 0);
  const int second = Attach("two", kTwo);
  ifreq detach = {};
  detach.ifr_flags = IFF_DETACH_QUEUE;
  CHECK(ioctl(second, TUNSETQUEUE, &detach) == 0);
  const int lasting = Attach("three", IFF_TUN);
  CHECK(ioctl(lasting, TUNSETPERSIST, 1) == 0 && ioctl(lasting, TUNSETOWNER, 77) == 0);
  close(lasting);
  const int none = Open();

  target::PassCheckpoint(argv[1]);

  CHECK(FlagsOf(one, "one") == (IFF_TUN | IFF_NO_PI));
  CheckSends(one);
  CHECK(FlagsOf(first, "two") == kTwo);
  CHECK(FlagsOf(second, "two") == (kTwo | IFF_DETACH_QUEUE));
  CHECK(ioctl(first, TUNGETVNETHDRSZ, &header) == 0 && header == kHeaderBytes);
  CHECK(ioctl(first, TUNGETSNDBUF, &bytes) == 0 && bytes == kSendBytes);
  CHECK(target::Read("/proc/self/net/dev").find("three:") != std::string::npos && IsThere("three"));
  ifreq fresh = Named("four");
  fresh.ifr_flags = IFF_TUN;
  CHECK(ioctl(none, TUNSETIFF, &fresh) == 0);
  // It lasts no longer than its program has it open.
  close(one);
  close(none);
  CHECK(!IsThere("one") && !IsThere("four") && IsThere("two"));
  return 0;
}
