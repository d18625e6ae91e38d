// Source   ip(7), ipv6(7), tcp(7), udp(7); tested on 6.18
#include "engine/files/inet_options.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "engine/files/multicast.h"
#include "engine/files/raw_options.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

struct Option {
  int level;
  int name;
};

// Options of one int that CRIU has no place for, none of which needs a right. What is not in this
// list is not restored, whatever an archive says. Numbers are those of names that glibc 2.36 lacks.
constexpr auto kOptions = std::to_array<Option>({
    {IPPROTO_TCP, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT},
    {IPPROTO_TCP, TCP_FASTOPEN},
    {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE},
    {IPPROTO_TCP, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_LINGER2},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS},
    {IPPROTO_TCP, TCP_SAVE_SYN},
    {IPPROTO_TCP, TCP_INQ},
    {IPPROTO_TCP, TCP_TX_DELAY},
    {IPPROTO_UDP, 101},     // UDP_NO_CHECK6_TX
    {IPPROTO_UDP, 102},     // UDP_NO_CHECK6_RX
    {IPPROTO_UDP, 103},     // UDP_SEGMENT
    {IPPROTO_UDP, 104},     // UDP_GRO
    {IPPROTO_UDPLITE, 10},  // UDPLITE_SEND_CSCOV
    {IPPROTO_UDPLITE, 11},  // UDPLITE_RECV_CSCOV
    {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IP, IP_RECVOPTS},
    {IPPROTO_IP, IP_RETOPTS},
    {IPPROTO_IP, IP_PASSSEC},
    {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IP, IP_MINTTL},
    {IPPROTO_IP, IP_CHECKSUM},
    {IPPROTO_IP, IP_RECVFRAGSIZE},
    {IPPROTO_IP, 26},  // IP_RECVERR_RFC4884
    {IPPROTO_IP, IP_UNICAST_IF},
    {IPPROTO_IP, 51},  // IP_LOCAL_PORT_RANGE
    {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP},
    {IPPROTO_IP, IP_MULTICAST_ALL},
    {IPPROTO_IP, IP_MULTICAST_IF},  // an address; where there is none, an interface stays unknown
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE},
    {IPPROTO_IPV6, 31},  // IPV6_RECVERR_RFC4884
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT},
    {IPPROTO_IPV6, 11},  // IPV6_FLOWINFO
    {IPPROTO_IPV6, 33},  // IPV6_FLOWINFO_SEND
    {IPPROTO_IPV6, IPV6_UNICAST_IF},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {IPPROTO_IPV6, 29},  // IPV6_MULTICAST_ALL
    {IPPROTO_IPV6, IPV6_MULTICAST_IF},
    {IPPROTO_IPV6, IPV6_CHECKSUM},
    {SOL_SOCKET, SO_TIMESTAMP},
    {SOL_SOCKET, SO_TIMESTAMPNS},
    {SOL_SOCKET, SO_TIMESTAMPING},
    {SOL_SOCKET, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_ZEROCOPY},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE},
    {SOL_SOCKET, SO_PEEK_OFF},
    {SOL_SOCKET, SO_TXREHASH},
    {SOL_SOCKET, SO_RCVMARK},
    {SOL_SOCKET, 82},  // SO_RCVPRIORITY
    {SOL_SOCKET, SO_LOCK_FILTER},
});

// The same, set by the program itself, since they may need a right.
constexpr auto kPrivilegedOptions = std::to_array<Option>({
    {SOL_SOCKET, SO_BUSY_POLL},
    {SOL_SOCKET, SO_PREFER_BUSY_POLL},
    {SOL_SOCKET, SO_BUSY_POLL_BUDGET},
    {IPPROTO_IP, IP_TRANSPARENT},
    {IPPROTO_IPV6, 75},  // IPV6_TRANSPARENT
});

// As kOptions, of what has no connection: one sets them itself.
constexpr auto kUnconnectedOptions = std::to_array<Option>({
    {IPPROTO_TCP, TCP_MAXSEG},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP},
});

bool IsTcp(const image::InetSkEntry& entry) {
  if (entry.type() != SOCK_STREAM) return false;
  return entry.proto() == IPPROTO_TCP || entry.proto() == IPPROTO_MPTCP;
}

bool IsIn(std::span<const Option> options, const image::StasisSocketOption& option) {
  return std::ranges::any_of(options, [&](const Option& one) {
    return option.level() == one.level && option.name() == one.name;
  });
}

// The kernel tells these of stream sockets too, and lets nobody set them there.
bool IsOfDatagrams(int level, int name) {
  if (level == IPPROTO_IP) {
    return name == IP_MULTICAST_TTL || name == IP_MULTICAST_LOOP || name == IP_MULTICAST_ALL ||
           name == IP_MULTICAST_IF || name == IP_CHECKSUM;
  }
  return level == IPPROTO_IPV6 &&
         (name == IPV6_MULTICAST_HOPS || name == IPV6_MULTICAST_LOOP || name == IPV6_MULTICAST_IF);
}

// Setting a value that is there already may fail in some states and never helps.
Status SetIfOther(int fd, int level, int name, int wanted) {
  const Result<int> now = SocketOption(fd, level, name);
  if (now.ok() && *now == wanted) return OkStatus();
  return SetSocketOption(fd, level, name, wanted);
}

// The same options under the names of either family.
struct IpNames {
  int level, pktinfo, tos, ttl, freebind;
};
IpNames NamesOf(std::uint32_t family) {
  if (family == AF_INET) return {IPPROTO_IP, IP_PKTINFO, IP_TOS, IP_TTL, IP_FREEBIND};
  return {IPPROTO_IPV6, IPV6_RECVPKTINFO, IPV6_TCLASS, IPV6_UNICAST_HOPS, 78};  // IPV6_FREEBIND
}

Status DumpIpOptions(int fd, image::InetSkEntry& entry) {
  const IpNames names = NamesOf(entry.family());
  image::IpOptsEntry& options = *entry.mutable_ip_opts();
  if (SocketOption(fd, names.level, names.freebind).value_or(0) != 0) options.set_freebind(true);
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
  constexpr int kSticky[] = {IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS};
  for (const int name : kSticky) {
    std::array<char, 256> header = {};
    socklen_t length = header.size();
    if (entry.family() == AF_INET6 &&
        ::getsockopt(fd, IPPROTO_IPV6, name, header.data(), &length) == 0 && length > 0) {
      return Unimplemented(NameOf(file) +
                           ": IPv6 extension headers of a socket's own cannot be "
                           "checkpointed yet");
    }
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
  const int level = static_cast<int>(entry.proto());
  if ((level == IPPROTO_UDP || level == IPPROTO_UDPLITE) &&
      (SocketOption(fd, level, UDP_CORK).value_or(0) != 0 ||
       SocketOption(fd, level, UDP_ENCAP).value_or(0) != 0)) {
    return Unimplemented(NameOf(file) +
                         ": UDP_CORK and UDP_ENCAP sockets cannot be checkpointed yet");
  }
  return OkStatus();
}

// IP_OPTIONS, what is sent with each packet: up to 40 bytes, ip(7).
Status DumpIpHeaderOptions(int fd, image::InetSkEntry& entry) {
  std::array<char, 64> bytes = {};
  socklen_t length = bytes.size();
  if (::getsockopt(fd, IPPROTO_IP, IP_OPTIONS, bytes.data(), &length) == 0 && length > 0) {
    entry.set_stasis_ip_options(bytes.data(), length);
  }
  return OkStatus();
}

bool IsConnected(const image::InetSkEntry& entry) {
  return IsTcp(entry) && entry.state() != TCP_LISTEN && entry.state() != TCP_CLOSE;
}

void DumpList(int fd, std::span<const Option> options, image::InetSkEntry& entry) {
  for (const auto& [level, name] : options) {
    if (entry.type() == SOCK_STREAM && IsOfDatagrams(level, name)) continue;
    const Result<int> value = SocketOption(fd, level, name);
    if (!value.ok()) continue;  // not an option of this protocol
    image::StasisSocketOption& option = *entry.add_stasis_options();
    option.set_level(level);
    option.set_name(name);
    option.set_value(*value);
  }
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

Status SetByActor(int fd, const image::StasisSocketOption& option, FileActor& actor) {
  const Result<int> now = SocketOption(fd, option.level(), option.name());
  if (now.ok() && *now == option.value()) return OkStatus();
  const int value = option.value();
  return SetOptionByActor(actor, fd, option.level(), option.name(),
                          std::as_bytes(std::span(&value, 1)));
}

Status RestoreCongestion(int fd, const image::InetSkEntry& entry, FileActor& actor) {
  const std::string& wanted = entry.stasis_congestion();
  const auto now = SocketOption<std::array<char, 16>>(fd, IPPROTO_TCP, TCP_CONGESTION);
  if (wanted.empty() || !now.ok() || wanted == now->data()) return OkStatus();
  return Annotate(
      SetOptionByActor(actor, fd, IPPROTO_TCP, TCP_CONGESTION, std::as_bytes(std::span(wanted))),
      "TCP congestion control " + wanted.substr(0, now->size()));
}

// A locked filter cannot be set any more.
bool IsLast(const image::StasisSocketOption& option) {
  return option.level() == SOL_SOCKET && option.name() == SO_LOCK_FILTER;
}

}  // namespace

Status DumpInetOptions(const OpenFile& file, image::InetSkEntry& entry) {
  RETURN_IF_ERROR(CheckStates(file, entry));
  const int fd = file.borrowed.get();
  RETURN_IF_ERROR(Annotate(DumpIpOptions(fd, entry), NameOf(file)));
  if (IsTcp(entry)) {
    RETURN_IF_ERROR(Annotate(DumpTcpOptions(fd, *entry.mutable_tcp_opts()), NameOf(file)));
  }
  if (entry.type() == SOCK_RAW) {
    RETURN_IF_ERROR(Annotate(DumpRawOptions(fd, entry), NameOf(file)));
  }
  DumpList(fd, kOptions, entry);
  DumpList(fd, kPrivilegedOptions, entry);
  DumpList(fd, kUnconnectedOptions, entry);
  if (IsTcp(entry)) {
    const auto name = SocketOption<std::array<char, 16>>(fd, IPPROTO_TCP, TCP_CONGESTION);
    if (name.ok()) {
      entry.set_stasis_congestion(name->data(), ::strnlen(name->data(), name->size()));
    }
  }
  RETURN_IF_ERROR(DumpIpHeaderOptions(fd, entry));
  return Annotate(DumpMemberships(file, entry), NameOf(file));
}

Status RestoreInetOptionsBeforeBind(int fd, const image::InetSkEntry& entry, FileActor& actor) {
  if (entry.family() == AF_INET6 && entry.has_v6only()) {
    RETURN_IF_ERROR(SetIfOther(fd, IPPROTO_IPV6, IPV6_V6ONLY, entry.v6only()));
  }
  const IpNames names = NamesOf(entry.family());
  if (entry.ip_opts().freebind() || entry.stasis_nonlocal()) {
    RETURN_IF_ERROR(SetSocketOption(fd, names.level, names.freebind, 1));
  }
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    if (IsIn(kPrivilegedOptions, option)) RETURN_IF_ERROR(SetByActor(fd, option, actor));
  }
  return OkStatus();
}

Status RestoreInetOptions(int fd, const image::InetSkEntry& entry, FileActor& actor) {
  if (entry.stasis_nonlocal()) {
    const IpNames names = NamesOf(entry.family());
    RETURN_IF_ERROR(
        SetSocketOption(fd, names.level, names.freebind, int{entry.ip_opts().freebind()}));
  }
  RETURN_IF_ERROR(RestoreIpOptions(fd, entry));
  // CRIU writes an empty tcp_opts for UDP too.
  if (IsTcp(entry) && entry.has_tcp_opts()) {
    RETURN_IF_ERROR(RestoreTcpOptions(fd, entry.tcp_opts()));
  }
  if (entry.type() == SOCK_RAW) RETURN_IF_ERROR(RestoreRawOptions(fd, entry));
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    if (!IsIn(kOptions, option) && (IsConnected(entry) || !IsIn(kUnconnectedOptions, option))) {
      continue;
    }
    if (entry.type() == SOCK_STREAM && IsOfDatagrams(option.level(), option.name())) continue;
    if (IsLast(option)) continue;
    RETURN_IF_ERROR(SetIfOther(fd, option.level(), option.name(), option.value()));
  }
  RETURN_IF_ERROR(RestoreCongestion(fd, entry, actor));
  if (!entry.stasis_ip_options().empty()) {
    RETURN_IF_ERROR(SetOptionByActor(actor, fd, IPPROTO_IP, IP_OPTIONS,
                                     std::as_bytes(std::span(entry.stasis_ip_options()))));
  }
  RETURN_IF_ERROR(RestoreMemberships(fd, entry));
  // The priority, which the type of service sets too, comes after it.
  return RestorePrivilegedOptions(fd, entry.opts(), actor);
}

Status RestoreLastInetOptions(int fd, const image::InetSkEntry& entry) {
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    if (!IsLast(option)) continue;
    RETURN_IF_ERROR(SetIfOther(fd, option.level(), option.name(), option.value()));
  }
  return OkStatus();
}

}  // namespace stasis::engine
