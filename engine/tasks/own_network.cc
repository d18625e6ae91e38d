// Source  getifaddrs(3), netdevice(7), linux/netfilter/nf_tables.h, ip_tables(8); tested on 6.18
// Rule    Tunnel modules put a device into every new network namespace, which is down until somebody wants it
//         (sysctl net.core.fb_tunnels_only_for_init_net).
// Rule    /proc/thread-self/net/ip_tables_names lists the tables of legacy iptables that this namespace uses.
#include "engine/tasks/own_network.h"

#include <absl/cleanup/cleanup.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {
namespace {

constexpr char kLoopback[] = "lo";
constexpr std::string_view kFallbackTunnels[] = {
    "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0", "sit0"};

// Of the loopback device: one that it has when it is up.
bool IsItsOwn(const ifaddrs& address) {
  if (address.ifa_addr == nullptr) return true;
  if (address.ifa_addr->sa_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in&>(*address.ifa_addr);
    return ip.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
  }
  if (address.ifa_addr->sa_family == AF_INET6) {
    return IN6_IS_ADDR_LOOPBACK(
        &reinterpret_cast<const sockaddr_in6&>(*address.ifa_addr).sin6_addr);
  }
  return true;
}

Result<std::optional<bool>> Devices() {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return SyscallError(errno, "getifaddrs");
  const absl::Cleanup free = [first] { ::freeifaddrs(first); };
  bool up = false;
  for (const ifaddrs* at = first; at != nullptr; at = at->ifa_next) {
    const std::string_view name = at->ifa_name;
    const bool is_up = (at->ifa_flags & IFF_UP) != 0;
    if (name == kLoopback && IsItsOwn(*at)) {
      up = up || is_up;
    } else if (is_up || std::ranges::find(kFallbackTunnels, name) == std::end(kFallbackTunnels)) {
      return std::nullopt;
    }
  }
  return up;
}

// One answer is enough.
Result<bool> HasTables() {
  const UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (!fd && errno == EPROTONOSUPPORT) return false;
  if (!fd) return SyscallError(errno, "socket of netfilter");
  struct {
    nlmsghdr header;
    nfgenmsg generic;
  } request = {};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  if (::send(fd.get(), &request, sizeof(request), 0) < 0)
    return SyscallError(errno, "ask nf_tables");
  alignas(nlmsghdr) std::array<char, 65536> answer;
  if (::recv(fd.get(), answer.data(), answer.size(), 0) < 0) {
    return SyscallError(errno, "ask nf_tables");
  }
  nlmsghdr header;
  std::memcpy(&header, answer.data(), sizeof(header));
  if (header.nlmsg_type == NLMSG_DONE) return false;
  if (header.nlmsg_type != NLMSG_ERROR) return true;
  nlmsgerr error;
  std::memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof(error));
  if (error.error == -EOPNOTSUPP || error.error == -EINVAL) return false;  // not in this kernel
  return SyscallError(-error.error, "ask nf_tables");
}

Result<bool> HasLegacyTables() {
  for (const char* const name : {"ip_tables_names", "ip6_tables_names"}) {
    const Result<std::string> text =
        ReadFileAt(AT_FDCWD, std::string("/proc/thread-self/net/") + name);
    if (!text.ok() && ErrnoOf(text.status()) == ENOENT) continue;
    RETURN_IF_ERROR(text.status());
    if (!text->empty()) return true;
  }
  return false;
}

}  // namespace

Result<std::optional<bool>> LoopbackOnly(int ns_fd) {
  std::optional<bool> up;
  RETURN_IF_ERROR(InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(up, Devices());
    if (!up) return OkStatus();
    ASSIGN_OR_RETURN(const bool tables, HasTables());
    ASSIGN_OR_RETURN(const bool legacy, HasLegacyTables());
    if (tables || legacy) up.reset();
    return OkStatus();
  }));
  return up;
}

Status SetLoopbackUp(int ns_fd) {
  return InNamespace(ns_fd, CLONE_NEWNET, []() -> Status {
    const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd) return SyscallError(errno, "socket");
    ifreq request = {};
    std::memcpy(request.ifr_name, kLoopback, sizeof(kLoopback));
    if (::ioctl(fd.get(), SIOCGIFFLAGS, &request) != 0) return SyscallError(errno, "SIOCGIFFLAGS");
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
    if (::ioctl(fd.get(), SIOCSIFFLAGS, &request) != 0) return SyscallError(errno, "SIOCSIFFLAGS");
    return OkStatus();
  });
}

}  // namespace stasis::engine
