// Source  raw(7), ipv6(7) IPV6_HDRINCL, RFC 9293 section 3.1, RFC 1071
// Rule    What a raw socket sends to an address of this machine comes back in by the loopback interface,
//         whatever its sender's address is: its route is known already, so nothing checks the sender.
// Rule    Of an IPv4 header the kernel fills in length, identification and checksum, raw(7).
#include "engine/files/tcp_segment.h"

#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "engine/base/namespace.h"
#include "engine/base/unique_fd.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr std::uint8_t kHops = 64;

template <typename T>
void Append(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendAddress(std::string& bytes, const InetAddress& address) {
  for (std::size_t i = 0; i < address.word_count(); ++i) Append(bytes, address.words[i]);
}

std::uint16_t Checksum(std::string_view bytes) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    std::uint16_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<std::size_t>(2, bytes.size() - i));
    sum += word;
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

tcphdr Header(const TcpSegment& segment) {
  tcphdr header = {};
  header.source = htons(segment.from.port);
  header.dest = htons(segment.to.port);
  header.seq = htonl(segment.sequence);
  header.ack_seq = htonl(segment.acknowledged);
  header.doff = sizeof(header) / 4;
  header.ack = 1;
  header.fin = segment.fin;
  header.rst = segment.rst;
  header.window = htons(segment.window);
  std::string summed;  // the pseudo header, and the segment
  AppendAddress(summed, segment.from);
  AppendAddress(summed, segment.to);
  Append(summed, htonl(sizeof(header)));
  Append(summed, htonl(IPPROTO_TCP));
  Append(summed, header);
  header.check = Checksum(summed);
  return header;
}

bool IsMapped(const InetAddress& address) {
  return address.family == AF_INET6 && address.words[0] == 0 && address.words[1] == 0 &&
         address.words[2] == htonl(0xffff);
}

Status Send(const TcpSegment& segment) {
  const int family = segment.to.family;
  const UniqueFd raw(::socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
  if (!raw) {
    return SyscallError(errno, "raw socket");
  }
  RETURN_IF_ERROR(SetSocketOption(raw.get(), SOL_SOCKET, SO_MARK, kSegmentMark));
  if (family == AF_INET6) {
    constexpr int kHeaderIncluded = 36;  // IPV6_HDRINCL
    RETURN_IF_ERROR(SetSocketOption(raw.get(), IPPROTO_IPV6, kHeaderIncluded, 1));
  }
  InetAddress to = segment.to;
  to.port = 0;  // of a raw IPv6 socket's address it would be the protocol
  const InetSockaddr address(to);
  const std::string bytes = ToBytes(segment);
  if (::sendto(raw.get(), bytes.data(), bytes.size(), 0,
               reinterpret_cast<const sockaddr*>(address.bytes().data()),
               static_cast<socklen_t>(address.bytes().size())) < 0) {
    return SyscallError(errno, "send a segment to " + segment.to.ToText());
  }
  return OkStatus();
}

}  // namespace

InetAddress Unmapped(const InetAddress& address) {
  if (!IsMapped(address)) return address;
  InetAddress v4 = {.family = AF_INET};
  v4.words[0] = address.words[3];
  v4.port = address.port;
  return v4;
}

std::string ToBytes(const TcpSegment& segment) {
  std::string bytes;
  if (segment.to.family == AF_INET) {
    iphdr header = {};
    header.version = 4;
    header.ihl = sizeof(header) / 4;
    header.tot_len = htons(sizeof(header) + sizeof(tcphdr));
    header.ttl = kHops;
    header.protocol = IPPROTO_TCP;
    header.saddr = segment.from.words[0];
    header.daddr = segment.to.words[0];
    Append(bytes, header);
  } else {
    ip6_hdr header = {};
    header.ip6_flow = htonl(6u << 28);
    header.ip6_plen = htons(sizeof(tcphdr));
    header.ip6_nxt = IPPROTO_TCP;
    header.ip6_hlim = kHops;
    std::memcpy(&header.ip6_src, segment.from.words.data(), sizeof(header.ip6_src));
    std::memcpy(&header.ip6_dst, segment.to.words.data(), sizeof(header.ip6_dst));
    Append(bytes, header);
  }
  Append(bytes, Header(segment));
  return bytes;
}

Status TakeOwnSegments(int fd) {
  constexpr std::array<sock_filter, 4> kMarked = {{
      {.code = BPF_LD | BPF_W | BPF_ABS,
       .jt = 0,
       .jf = 0,
       .k = static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_MARK)},
      {.code = BPF_JMP | BPF_JEQ | BPF_K, .jt = 0, .jf = 1, .k = kSegmentMark},
      {.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0xFFFFFFFF},
      {.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0},
  }};
  return SetSocketFilter(fd, kMarked);
}

Status ReceiveSegment(int fd, const TcpSegment& segment) {
  const UniqueFd ns(::ioctl(fd, SIOCGSKNS));
  if (!ns) {
    return SyscallError(errno, "SIOCGSKNS");
  }
  return InNamespace(ns.get(), CLONE_NEWNET, [&] { return Send(segment); });
}

}  // namespace stasis::engine
