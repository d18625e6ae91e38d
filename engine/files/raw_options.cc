// Source  raw(7), icmp(7), ipv6(7), linux/icmp.h, linux/icmpv6.h
// Rule    ICMP_FILTER is one word, ICMPV6_FILTER eight; the kernel has them for sockets of that protocol.
#include "engine/files/raw_options.h"

#include <netinet/icmp6.h>
#include <netinet/in.h>

#include <array>
#include <cerrno>

#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr int kSolRaw = 255, kIcmpFilter = 1;  // linux/icmp.h
constexpr int kNoDefrag = 22;                  // IP_NODEFRAG
constexpr int kIpv6HeaderIncluded = 36;        // IPV6_HDRINCL

struct Level {
  int level, name;
};
Level HeaderIncluded(const image::InetSkEntry& entry) {
  if (entry.family() == AF_INET) return {IPPROTO_IP, IP_HDRINCL};
  return {IPPROTO_IPV6, kIpv6HeaderIncluded};
}

bool HasFilter(const image::InetSkEntry& entry) {
  return entry.proto() == static_cast<std::uint32_t>(
                              entry.family() == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
}
Level Filter(const image::InetSkEntry& entry) {
  if (entry.family() == AF_INET) return {kSolRaw, kIcmpFilter};
  return {IPPROTO_ICMPV6, ICMP6_FILTER};
}

}  // namespace

Status DumpRawOptions(int fd, image::InetSkEntry& entry) {
  image::IpOptsRawEntry& raw = *entry.mutable_ip_opts()->mutable_raw();
  const Level included = HeaderIncluded(entry);
  if (SocketOption(fd, included.level, included.name).value_or(0) != 0) raw.set_hdrincl(true);
  if (entry.family() == AF_INET) {
    if (SocketOption(fd, IPPROTO_IP, kNoDefrag).value_or(0) != 0) raw.set_nodefrag(true);
  } else if (SocketOption(fd, IPPROTO_IPV6, IPV6_CHECKSUM).value_or(-1) >= 0) {
    raw.set_checksum(true);
  }
  if (!HasFilter(entry)) return OkStatus();
  std::array<std::uint32_t, 8> words = {};
  socklen_t length = sizeof(words);
  const Level filter = Filter(entry);
  if (::getsockopt(fd, filter.level, filter.name, words.data(), &length) != 0) {
    return SyscallError(errno, "ICMP filter");
  }
  for (std::size_t i = 0; i < length / sizeof(words[0]); ++i) raw.add_icmpv_filter(words[i]);
  return OkStatus();
}

Status RestoreRawOptions(int fd, const image::InetSkEntry& entry) {
  const image::IpOptsRawEntry& raw = entry.ip_opts().raw();
  const Level included = HeaderIncluded(entry);
  // IPPROTO_RAW implies it; only other protocols say it aloud.
  const int now = SocketOption(fd, included.level, included.name).value_or(0);
  if (now != static_cast<int>(raw.hdrincl())) {
    RETURN_IF_ERROR(SetSocketOption(fd, included.level, included.name, int{raw.hdrincl()}));
  }
  if (raw.nodefrag()) RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_IP, kNoDefrag, 1));
  if (raw.icmpv_filter_size() == 0 || !HasFilter(entry)) return OkStatus();
  std::array<std::uint32_t, 8> words = {};
  const auto count = static_cast<std::size_t>(raw.icmpv_filter_size());
  if (count > words.size()) return DataLoss("a strange ICMP filter");
  for (std::size_t i = 0; i < count; ++i) words[i] = raw.icmpv_filter(static_cast<int>(i));
  const Level filter = Filter(entry);
  if (::setsockopt(fd, filter.level, filter.name, words.data(),
                   static_cast<socklen_t>(count * sizeof(words[0]))) != 0) {
    return SyscallError(errno, "ICMP filter");
  }
  return OkStatus();
}

}  // namespace stasis::engine
