// Source   ip(7), ipv6(7), tcp(7), udp(7); tested on 6.18
#include "engine/files/inet_options.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

#include <array>
#include <cstring>
#include <utility>

#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

struct Option {
  int level;
  int name;
};

// Options of one int that CRIU has no place for, none of which needs a right. What is not in this
// list is not restored, whatever an archive says.
constexpr auto kOptions = std::to_array<Option>({
    {IPPROTO_TCP, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT},
    {IPPROTO_TCP, TCP_FASTOPEN},
    {IPPROTO_TCP, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_LINGER2},
    {IPPROTO_UDP, 103},  // UDP_SEGMENT, not in glibc 2.36
    {IPPROTO_UDP, 104},  // UDP_GRO
    {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {SOL_SOCKET, SO_TIMESTAMP},
    {SOL_SOCKET, SO_TIMESTAMPNS},
    {SOL_SOCKET, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_ZEROCOPY},
});

bool IsTcp(const image::InetSkEntry& entry) {
  return entry.proto() == IPPROTO_TCP || entry.proto() == IPPROTO_MPTCP;
}

bool IsKnown(const image::StasisSocketOption& option) {
  for (const auto& [level, name] : kOptions) {
    if (option.level() == level && option.name() == name) return true;
  }
  return false;
}

// The kernel tells these of stream sockets too, and lets nobody set them there.
bool IsMulticast(int level, int name) {
  if (level == IPPROTO_IP) return name == IP_MULTICAST_TTL || name == IP_MULTICAST_LOOP;
  return level == IPPROTO_IPV6 && (name == IPV6_MULTICAST_HOPS || name == IPV6_MULTICAST_LOOP);
}

// Setting a value that is there already may fail in some states and never helps.
Status SetIfOther(int fd, int level, int name, int wanted) {
  const Result<int> now = SocketOption(fd, level, name);
  if (now.ok() && *now == wanted) return OkStatus();
  return SetSocketOption(fd, level, name, wanted);
}

// The same options under the names of either family.
struct IpNames {
  int level, pktinfo, tos, ttl;
};
IpNames NamesOf(std::uint32_t family) {
  if (family == AF_INET) return {IPPROTO_IP, IP_PKTINFO, IP_TOS, IP_TTL};
  return {IPPROTO_IPV6, IPV6_RECVPKTINFO, IPV6_TCLASS, IPV6_UNICAST_HOPS};
}

Status DumpIpOptions(int fd, image::InetSkEntry& entry) {
  const IpNames names = NamesOf(entry.family());
  image::IpOptsEntry& options = *entry.mutable_ip_opts();
  ASSIGN_OR_RETURN(const int freebind, SocketOption(fd, IPPROTO_IP, IP_FREEBIND));
  if (freebind != 0) options.set_freebind(true);
  // What a family of sockets does not tell (MPTCP: EOPNOTSUPP), its programs cannot set either.
  const auto set = [&](int name, auto setter, auto convert) -> Status {
    const Result<int> value = SocketOption(fd, names.level, name);
    if (!value.ok() && ErrnoOf(value.status()) == EOPNOTSUPP) return OkStatus();
    RETURN_IF_ERROR(value.status());
    (options.*setter)(convert(*value));
    return OkStatus();
  };
  const auto to_number = [](int value) { return static_cast<std::uint32_t>(value); };
  RETURN_IF_ERROR(
      set(names.pktinfo, &image::IpOptsEntry::set_pktinfo, [](int value) { return value != 0; }));
  RETURN_IF_ERROR(set(names.tos, &image::IpOptsEntry::set_tos, to_number));
  RETURN_IF_ERROR(set(names.ttl, &image::IpOptsEntry::set_ttl, to_number));
  if (entry.family() == AF_INET6) {
    ASSIGN_OR_RETURN(const int only, SocketOption(fd, IPPROTO_IPV6, IPV6_V6ONLY));
    entry.set_v6only(only != 0);
  }
  return OkStatus();
}

Status DumpTcpOptions(int fd, image::TcpOptsEntry& options) {
  ASSIGN_OR_RETURN(const int cork, SocketOption(fd, IPPROTO_TCP, TCP_CORK));
  options.set_cork(cork != 0);
  ASSIGN_OR_RETURN(const int nodelay, SocketOption(fd, IPPROTO_TCP, TCP_NODELAY));
  options.set_nodelay(nodelay != 0);
  ASSIGN_OR_RETURN(const auto count, SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_KEEPCNT));
  options.set_keepcnt(count);
  ASSIGN_OR_RETURN(const auto idle, SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_KEEPIDLE));
  options.set_keepidle(idle);
  ASSIGN_OR_RETURN(const auto each, SocketOption<std::uint32_t>(fd, IPPROTO_TCP, TCP_KEEPINTVL));
  options.set_keepintvl(each);
  return OkStatus();
}

// Refuses the states that a restored socket would silently lack.
Status CheckStates(const OpenFile& file, const image::InetSkEntry& entry) {
  const int fd = file.borrowed.get();
  if (SocketOption(fd, IPPROTO_IP, IP_TRANSPARENT).value_or(0) != 0) {
    return Unimplemented(NameOf(file) +
                         ": IP_TRANSPARENT needs CAP_NET_ADMIN and cannot be checkpointed yet");
  }
  if (entry.proto() == IPPROTO_MPTCP) return OkStatus();  // itself such a layer, by its name
  if (IsTcp(entry)) {
    const auto layer = SocketOption<std::array<char, 16>>(fd, IPPROTO_TCP, TCP_ULP);
    if (layer.ok() && layer->front() != '\0') {
      return Unimplemented(NameOf(file) + ": a protocol above TCP in the kernel (" +
                           std::string(layer->data(), ::strnlen(layer->data(), layer->size())) +
                           ") cannot be checkpointed");
    }
    return OkStatus();
  }
  if (SocketOption(fd, IPPROTO_UDP, UDP_CORK).value_or(0) != 0 ||
      SocketOption(fd, IPPROTO_UDP, UDP_ENCAP).value_or(0) != 0) {
    return Unimplemented(NameOf(file) +
                         ": UDP_CORK and UDP_ENCAP sockets cannot be checkpointed yet");
  }
  return OkStatus();
}

Status RestoreIpOptions(int fd, const image::InetSkEntry& entry) {
  const IpNames names = NamesOf(entry.family());
  const image::IpOptsEntry& options = entry.ip_opts();
  if (options.has_pktinfo()) {
    RETURN_IF_ERROR(SetIfOther(fd, names.level, names.pktinfo, options.pktinfo()));
  }
  if (options.has_tos()) {
    RETURN_IF_ERROR(SetIfOther(fd, names.level, names.tos, static_cast<int>(options.tos())));
  }
  if (options.has_ttl()) {
    RETURN_IF_ERROR(SetIfOther(fd, names.level, names.ttl, static_cast<int>(options.ttl())));
  }
  return OkStatus();
}

Status RestoreTcpOptions(int fd, const image::TcpOptsEntry& options) {
  const std::pair<int, int> settings[] = {
      {TCP_CORK, options.cork()},
      {TCP_NODELAY, options.nodelay()},
      {TCP_KEEPCNT, static_cast<int>(options.keepcnt())},
      {TCP_KEEPIDLE, static_cast<int>(options.keepidle())},
      {TCP_KEEPINTVL, static_cast<int>(options.keepintvl())},
  };
  for (const auto& [name, wanted] : settings) {
    const bool unset = wanted == 0 && name != TCP_CORK && name != TCP_NODELAY;
    if (!unset) RETURN_IF_ERROR(SetIfOther(fd, IPPROTO_TCP, name, wanted));
  }
  return OkStatus();
}

}  // namespace

Status DumpInetOptions(const OpenFile& file, image::InetSkEntry& entry) {
  RETURN_IF_ERROR(CheckStates(file, entry));
  const int fd = file.borrowed.get();
  RETURN_IF_ERROR(Annotate(DumpIpOptions(fd, entry), NameOf(file)));
  if (IsTcp(entry)) {
    RETURN_IF_ERROR(Annotate(DumpTcpOptions(fd, *entry.mutable_tcp_opts()), NameOf(file)));
  }
  for (const auto& [level, name] : kOptions) {
    if (entry.type() == SOCK_STREAM && IsMulticast(level, name)) continue;
    const Result<int> value = SocketOption(fd, level, name);
    if (!value.ok()) continue;  // not an option of this protocol
    image::StasisSocketOption& option = *entry.add_stasis_options();
    option.set_level(level);
    option.set_name(name);
    option.set_value(*value);
  }
  return OkStatus();
}

Status RestoreInetOptionsBeforeBind(int fd, const image::InetSkEntry& entry) {
  if (entry.family() == AF_INET6 && entry.has_v6only()) {
    RETURN_IF_ERROR(SetIfOther(fd, IPPROTO_IPV6, IPV6_V6ONLY, entry.v6only()));
  }
  if (entry.ip_opts().freebind()) {
    RETURN_IF_ERROR(SetSocketOption(fd, IPPROTO_IP, IP_FREEBIND, 1));
  }
  return OkStatus();
}

Status RestoreInetOptions(int fd, const image::InetSkEntry& entry) {
  RETURN_IF_ERROR(RestoreIpOptions(fd, entry));
  // CRIU writes an empty tcp_opts for UDP too.
  if (IsTcp(entry) && entry.has_tcp_opts()) {
    RETURN_IF_ERROR(RestoreTcpOptions(fd, entry.tcp_opts()));
  }
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    if (!IsKnown(option)) continue;
    if (entry.type() == SOCK_STREAM && IsMulticast(option.level(), option.name())) continue;
    RETURN_IF_ERROR(SetIfOther(fd, option.level(), option.name(), option.value()));
  }
  return OkStatus();
}

}  // namespace stasis::engine
