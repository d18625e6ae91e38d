// Raw and packet sockets, with the rights that they need.
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/ip_icmp.h>
#include <sys/mman.h>

#include "inet.h"

namespace {

int Raw(int family, int type, int protocol) {
  const int fd = socket(family, type, protocol);
  if (fd < 0 && errno == EPERM) {
    std::puts("no CAP_NET_RAW");
    std::fflush(stdout);
    _exit(77);
  }
  CHECK(fd >= 0);
  return fd;
}

void Ping(int fd) {
  icmphdr request = {};
  request.type = ICMP_ECHO;
  request.checksum = static_cast<unsigned short>(~htons(ICMP_ECHO << 8));
  CHECK_EQ(send(fd, &request, sizeof(request), 0), static_cast<long long>(sizeof(request)));
  char answer[128];
  CHECK(recv(fd, answer, sizeof(answer), 0) > 0);
}

constexpr std::size_t kFrame = 2048, kFrames = 4;

// A socket that receives from the loopback device into a ring, which is mapped.
char* MappedRing() {
  const int fd = Raw(AF_PACKET, SOCK_DGRAM, 0);
  target::SetOption(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
  const tpacket_req ring = {2 * kFrame, kFrames / 2, kFrame, kFrames};
  CHECK(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)) == 0);
  void* const at = mmap(nullptr, kFrame * kFrames, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(at != MAP_FAILED);
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_IP);
  address.sll_ifindex = 1;
  CHECK(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return static_cast<char*>(at);
}

bool HasFrame(const char* ring, unsigned index) {
  const auto* const header = reinterpret_cast<const volatile tpacket2_hdr*>(ring + index * kFrame);
  return (header->tp_status & TP_STATUS_USER) != 0 && header->tp_snaplen >= 28;
}

}  // namespace

int main(int, char** argv) {
  constexpr int kSolRaw = 255, kIcmpFilter = 1;
  const int icmp = Raw(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  const int only_replies = ~(1 << ICMP_ECHOREPLY);
  CHECK(setsockopt(icmp, kSolRaw, kIcmpFilter, &only_replies, sizeof(int)) == 0);
  target::Connect(icmp, target::Loopback());
  const int packet = Raw(AF_PACKET, SOCK_DGRAM, 0);
  target::SetOption(packet, SOL_PACKET, PACKET_AUXDATA, 1);
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_IP);
  address.sll_ifindex = 1;
  CHECK(bind(packet, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const char* const ring = MappedRing();

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(target::Option(icmp, kSolRaw, kIcmpFilter), only_replies);
  Ping(icmp);
  CHECK(HasFrame(ring, 0) && HasFrame(ring, 1));  // the request and its answer
  CHECK_EQ(target::Option(packet, SOL_PACKET, PACKET_AUXDATA), 1);
  char frame[2048];
  CHECK(recv(packet, frame, sizeof(frame), 0) >= 28);
}
