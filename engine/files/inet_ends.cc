// Rule    A socket knows an interface by its number, an image by its name: the number is another one in
//         another namespace.
// Source  ip(7), ipv6(7) sin6_scope_id, netdevice(7) SIOCGIFNAME, SIOCGIFINDEX
#include "engine/files/inet_ends.h"

#include <net/if.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace stasis::engine {
namespace {

// The ioctl asks in the namespace of the socket.
Status DumpScope(int fd, std::uint32_t index, image::InetSkEntry& entry) {
  if (index == 0) return OkStatus();
  ifreq request = {};
  request.ifr_ifindex = static_cast<int>(index);
  if (::ioctl(fd, SIOCGIFNAME, &request) != 0) {
    return SyscallError(errno, "name of network interface " + std::to_string(index));
  }
  entry.set_ifname(request.ifr_name, ::strnlen(request.ifr_name, IFNAMSIZ));
  return OkStatus();
}

Result<InetAddress> AddressOf(const image::InetSkEntry& entry,
                              const google::protobuf::RepeatedField<std::uint32_t>& words,
                              std::uint32_t port) {
  InetAddress address;
  address.family = static_cast<int>(entry.family());
  if (static_cast<std::size_t>(words.size()) != address.word_count() || port > 0xffff) {
    return DataLoss("a socket with a strange address");
  }
  std::copy(words.begin(), words.end(), address.words.begin());
  address.port = static_cast<std::uint16_t>(port);
  return address;
}

}  // namespace

Status DumpEnds(int fd, image::InetSkEntry& entry) {
  ASSIGN_OR_RETURN(const InetAddress local, LocalAddress(fd));
  Result<InetAddress> remote = RemoteAddress(fd);
  if (!remote.ok() && remote.status().code() != StatusCode::kNotFound) return remote.status();
  if (!remote.ok()) remote = InetAddress{.family = local.family};
  for (std::size_t i = 0; i < local.word_count(); ++i) {
    entry.add_src_addr(local.words[i]);
    entry.add_dst_addr(remote->words[i]);
  }
  entry.set_src_port(local.port);
  entry.set_dst_port(remote->port);
  return DumpScope(fd, local.scope != 0 ? local.scope : remote->scope, entry);
}

Status DumpLastPeer(int fd, image::InetSkEntry& entry) {
  const Result<InetAddress> peer = LastRemoteAddress(fd);
  if (!peer.ok()) return OkStatus();  // of a connection that connect(2) gave up
  entry.clear_dst_addr();
  for (std::size_t i = 0; i < peer->word_count(); ++i) entry.add_dst_addr(peer->words[i]);
  entry.set_dst_port(peer->port);
  return entry.has_ifname() ? OkStatus() : DumpScope(fd, peer->scope, entry);
}

Result<InetAddress> LocalEnd(const image::InetSkEntry& entry) {
  return AddressOf(entry, entry.src_addr(), entry.src_port());
}

Result<InetAddress> RemoteEnd(const image::InetSkEntry& entry) {
  return AddressOf(entry, entry.dst_addr(), entry.dst_port());
}

Status RestoreScope(int fd, const image::InetSkEntry& entry, InetAddress& address) {
  if (entry.ifname().empty()) return OkStatus();
  ifreq request = {};
  entry.ifname().copy(request.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(fd, SIOCGIFINDEX, &request) != 0) {
    return SyscallError(errno, "network interface " + entry.ifname().substr(0, IFNAMSIZ));
  }
  address.scope = static_cast<std::uint32_t>(request.ifr_ifindex);
  return OkStatus();
}

Result<InetEnds> EndsOf(int fd, const image::InetSkEntry& entry) {
  InetEnds ends;
  ASSIGN_OR_RETURN(ends.local, LocalEnd(entry));
  ASSIGN_OR_RETURN(ends.remote, RemoteEnd(entry));
  if (fd < 0) return ends;
  RETURN_IF_ERROR(RestoreScope(fd, entry, ends.local));
  ends.remote.scope = ends.local.scope;
  return ends;
}

}  // namespace stasis::engine
