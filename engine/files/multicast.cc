// Source  ip(7), ipv6(7), RFC 3678, /proc/net/igmp and igmp6 (net/ipv4/igmp.c, net/ipv6/mcast.c)
// Rule    The tables show the groups of an interface, not whose they are. MCAST_MSFILTER of a group that
//         the socket is no member of is EADDRNOTAVAIL, of one that it is the sources.
#include "engine/files/multicast.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/files/socket.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kSourceLimit = 1024;  // far above net.ipv4.igmp_max_msf

using Group = std::pair<std::uint32_t, std::string>;  // interface, address bytes

int LevelOf(int family) { return family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6; }

sockaddr_storage AddressOf(int family, std::string_view bytes) {
  sockaddr_storage storage = {};
  storage.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    sockaddr_in v4 = {};
    v4.sin_family = AF_INET;
    std::memcpy(&v4.sin_addr, bytes.data(), std::min(bytes.size(), sizeof(v4.sin_addr)));
    std::memcpy(&storage, &v4, sizeof(v4));
  } else {
    sockaddr_in6 v6 = {};
    v6.sin6_family = AF_INET6;
    std::memcpy(&v6.sin6_addr, bytes.data(), std::min(bytes.size(), sizeof(v6.sin6_addr)));
    std::memcpy(&storage, &v6, sizeof(v6));
  }
  return storage;
}

std::string BytesOf(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof(v4));
    return {reinterpret_cast<const char*>(&v4.sin_addr), sizeof(v4.sin_addr)};
  }
  sockaddr_in6 v6;
  std::memcpy(&v6, &address, sizeof(v6));
  return {reinterpret_cast<const char*>(&v6.sin6_addr), sizeof(v6.sin6_addr)};
}

// "2	eth0      :     1      V3", then a line "	010000E0     1 0:00000000	0" a group.
std::set<Group> ParseIgmp(std::string_view text) {
  std::set<Group> groups;
  std::uint32_t device = 0;
  (void)text::CutLine(text);
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    const auto words = text::Words(line);
    if (words.empty()) continue;
    if (line.front() != '\t') {
      device = text::Number<std::uint32_t>(words[0]).value_or(0);
    } else if (const auto word = text::Number<std::uint32_t>(words[0], 16); word.ok()) {
      groups.emplace(device, std::string(reinterpret_cast<const char*>(&*word), sizeof(*word)));
    }
  }
  return groups;
}

// "2    eth0            ff020000000000000000000000000001     1 0000000C 0".
std::set<Group> ParseIgmp6(std::string_view text) {
  std::set<Group> groups;
  while (!text.empty()) {
    const auto words = text::Words(text::CutLine(text));
    if (words.size() < 3 || words[2].size() != 32) continue;
    std::string bytes;
    for (std::size_t i = 0; i < words[2].size(); i += 2) {
      bytes += static_cast<char>(text::Number<unsigned>(words[2].substr(i, 2), 16).value_or(0));
    }
    groups.emplace(text::Number<std::uint32_t>(words[0]).value_or(0), bytes);
  }
  return groups;
}

std::size_t FilterBytes(std::size_t sources) {
  return offsetof(group_filter, gf_slist) + sources * sizeof(sockaddr_storage);
}

// A group_filter with room for `sources`.
std::vector<char> FilterFor(int family, const Group& group, std::size_t sources) {
  group_filter filter = {};
  filter.gf_interface = group.first;
  filter.gf_group = AddressOf(family, group.second);
  filter.gf_numsrc = static_cast<std::uint32_t>(sources);
  std::vector<char> bytes(std::max(FilterBytes(sources), sizeof(filter)));
  std::memcpy(bytes.data(), &filter, FilterBytes(0));
  return bytes;
}

Result<std::string> InterfaceName(int fd, std::uint32_t index) {
  ifreq request = {};
  request.ifr_ifindex = static_cast<int>(index);
  if (::ioctl(fd, SIOCGIFNAME, &request) != 0) {
    return SyscallError(errno, "name of network interface " + std::to_string(index));
  }
  return std::string(request.ifr_name, ::strnlen(request.ifr_name, IFNAMSIZ));
}

Status DumpGroup(int fd, int family, const Group& group, image::InetSkEntry& entry) {
  std::vector<char> bytes = FilterFor(family, group, kSourceLimit);
  auto length = static_cast<socklen_t>(bytes.size());
  if (::getsockopt(fd, LevelOf(family), MCAST_MSFILTER, bytes.data(), &length) != 0) {
    // ENOPROTOOPT: a raw IPv6 socket knows no groups of IPv4.
    if (errno == EADDRNOTAVAIL || errno == ENOPROTOOPT) return OkStatus();
    return SyscallError(errno, "MCAST_MSFILTER");
  }
  group_filter filter;
  std::memcpy(&filter, bytes.data(), sizeof(filter));
  if (filter.gf_numsrc > kSourceLimit) return Unimplemented("a group of too many sources");
  image::StasisMembership& membership = *entry.add_stasis_memberships();
  ASSIGN_OR_RETURN(*membership.mutable_ifname(), InterfaceName(fd, group.first));
  membership.set_group(group.second);
  membership.set_include(filter.gf_fmode == MCAST_INCLUDE);
  for (std::uint32_t i = 0; i < filter.gf_numsrc; ++i) {
    sockaddr_storage source;
    std::memcpy(&source, bytes.data() + FilterBytes(i), sizeof(source));
    membership.add_source(BytesOf(source));
  }
  return OkStatus();
}

Status DumpFamily(const OpenFile& file, int family, image::InetSkEntry& entry) {
  const Result<std::string> text = ReadNetFile(file, family == AF_INET ? "igmp" : "igmp6");
  if (text.status().code() == StatusCode::kNotFound) return OkStatus();  // no such family here
  RETURN_IF_ERROR(text.status());
  for (const Group& group : family == AF_INET ? ParseIgmp(*text) : ParseIgmp6(*text)) {
    RETURN_IF_ERROR(DumpGroup(file.borrowed.get(), family, group, entry));
  }
  return OkStatus();
}

Status Join(int fd, const image::StasisMembership& membership) {
  const int family = membership.group().size() == sizeof(in_addr) ? AF_INET : AF_INET6;
  const auto sources = static_cast<std::size_t>(membership.source_size());
  if ((family == AF_INET6 && membership.group().size() != sizeof(in6_addr)) ||
      sources > kSourceLimit) {
    return DataLoss("a strange multicast group");
  }
  ifreq request = {};
  membership.ifname().copy(request.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(fd, SIOCGIFINDEX, &request) != 0) {
    return FailedPrecondition("a multicast group of network interface " +
                              membership.ifname().substr(0, IFNAMSIZ) + ", which is not here");
  }
  const Group group(static_cast<std::uint32_t>(request.ifr_ifindex), membership.group());
  group_req join = {};
  join.gr_interface = group.first;
  join.gr_group = AddressOf(family, group.second);
  RETURN_IF_ERROR(SetSocketOption(fd, LevelOf(family), MCAST_JOIN_GROUP, join));
  if (!membership.include() && sources == 0) return OkStatus();
  std::vector<char> bytes = FilterFor(family, group, sources);
  const std::uint32_t mode = membership.include() ? MCAST_INCLUDE : MCAST_EXCLUDE;
  std::memcpy(bytes.data() + offsetof(group_filter, gf_fmode), &mode, sizeof(mode));
  for (std::size_t i = 0; i < sources; ++i) {
    const sockaddr_storage source = AddressOf(family, membership.source(static_cast<int>(i)));
    std::memcpy(bytes.data() + FilterBytes(i), &source, sizeof(source));
  }
  if (::setsockopt(fd, LevelOf(family), MCAST_MSFILTER, bytes.data(),
                   static_cast<socklen_t>(FilterBytes(sources))) != 0) {
    return SyscallError(errno, "MCAST_MSFILTER");
  }
  return OkStatus();
}

}  // namespace

Status DumpMemberships(const OpenFile& file, image::InetSkEntry& entry) {
  if (entry.type() == SOCK_STREAM) return OkStatus();
  RETURN_IF_ERROR(DumpFamily(file, AF_INET, entry));
  return entry.family() == AF_INET6 ? DumpFamily(file, AF_INET6, entry) : OkStatus();
}

Status RestoreMemberships(int fd, const image::InetSkEntry& entry) {
  for (const image::StasisMembership& membership : entry.stasis_memberships()) {
    RETURN_IF_ERROR(Annotate(Join(fd, membership), "join a multicast group"));
  }
  return OkStatus();
}

}  // namespace stasis::engine
