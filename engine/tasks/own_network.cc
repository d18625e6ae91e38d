// Source  getifaddrs(3), netdevice(7); tested on 6.18
// Rule    Tunnel modules put a device into every new network namespace, which is down until somebody wants it
//         (sysctl net.core.fb_tunnels_only_for_init_net).
#include "engine/tasks/own_network.h"

#include <absl/cleanup/cleanup.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "engine/base/namespace.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_file.h"
#include "engine/tasks/firewall.h"
#include "engine/tasks/net_settings.h"

namespace stasis::engine {
namespace {

constexpr char kLoopback[] = "lo";
constexpr int kLoopbackMtu = 65536;
constexpr std::string_view kFallbackTunnels[] = {
    "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0", "sit0"};

// Whether the loopback device is up.
Result<bool> ReadDevices() {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return SyscallError(errno, "getifaddrs");
  const absl::Cleanup free = [first] { ::freeifaddrs(first); };
  bool loopback_up = false;
  for (const ifaddrs* at = first; at != nullptr; at = at->ifa_next) {
    // That of an address is its label.
    const std::string_view name =
        std::string_view(at->ifa_name).substr(0, std::string_view(at->ifa_name).find(':'));
    const bool is_up = (at->ifa_flags & IFF_UP) != 0;
    if (name == kLoopback) {
      loopback_up = loopback_up || is_up;
    } else if (is_up || std::ranges::find(kFallbackTunnels, name) == std::end(kFallbackTunnels)) {
      return Unimplemented("it has the network device " + std::string(name));
    }
  }
  return loopback_up;
}

Result<UniqueFd> ForLoopback(ifreq& request) {
  UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return SyscallError(errno, "socket");
  request = {};
  std::memcpy(request.ifr_name, kLoopback, sizeof(kLoopback));
  return fd;
}

Status CheckLoopback() {
  ifreq request;
  ASSIGN_OR_RETURN(const UniqueFd fd, ForLoopback(request));
  if (::ioctl(fd.get(), SIOCGIFMTU, &request) != 0) return SyscallError(errno, "SIOCGIFMTU");
  return request.ifr_mtu == kLoopbackMtu
             ? OkStatus()
             : Unimplemented("its loopback device has an MTU of its own");
}

Status SetLoopbackUp() {
  ifreq request;
  ASSIGN_OR_RETURN(const UniqueFd fd, ForLoopback(request));
  if (::ioctl(fd.get(), SIOCGIFFLAGS, &request) != 0) return SyscallError(errno, "SIOCGIFFLAGS");
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (::ioctl(fd.get(), SIOCSIFFLAGS, &request) != 0) return SyscallError(errno, "SIOCSIFFLAGS");
  return OkStatus();
}

// Before anything depends on it, in a namespace that is nobody's.
Status TryTables(const OwnNetwork& network) {
  if (::unshare(CLONE_NEWNET) != 0) return SyscallError(errno, "unshare");
  if (network.entry.stasis_loopback_up()) RETURN_IF_ERROR(SetLoopbackUp());
  const Status made = RestoreNetworkTables(network.tables);
  return made.ok() ? made : Unimplemented(Message(made));
}

struct Stream {
  const char* name;
  std::uint32_t magic;
  std::vector<std::string> NetworkTables::* messages;
};
constexpr Stream kStreams[] = {{"ifaddr", kAddressMagic, &NetworkTables::addresses},
                               {"rule", kRuleMagic, &NetworkTables::rules},
                               {"route", kRouteMagic, &NetworkTables::routes},
                               {"neighbour", kNeighbourMagic, &NetworkTables::neighbours}};

}  // namespace

Result<OwnNetwork> ReadOwnNetwork(int ns_fd) {
  OwnNetwork network;
  const Status read = InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(const bool is_up, ReadDevices());
    network.entry.set_stasis_loopback_up(is_up);
    RETURN_IF_ERROR(CheckLoopback());
    RETURN_IF_ERROR(AwaitAddresses());
    ASSIGN_OR_RETURN(network.tables, ReadNetworkTables());
    return TryTables(network);
  });
  RETURN_IF_ERROR(read);
  ASSIGN_OR_RETURN(const auto firewall, ReadFirewall(ns_fd));
  if (firewall) *network.entry.mutable_stasis_firewall() = *firewall;
  RETURN_IF_ERROR(ReadNetSettings(ns_fd, network.entry));
  return network;
}

Status WriteNetworkTables(const NetworkTables& tables, std::uint32_t number, ImageSink& sink) {
  for (const Stream& stream : kStreams) {
    RETURN_IF_ERROR(
        sink.Put(ImageName(stream.name, number), ToStream(stream.magic, tables.*stream.messages)));
  }
  return OkStatus();
}

Status MakeOwnNetwork(int ns_fd, const image::NetnsEntry& entry, std::uint32_t number,
                      const ImageSource& source, std::vector<std::string>& notes) {
  NetworkTables tables;
  bool has_tables = false;  // else of a checkpoint from before these were in it
  for (const Stream& stream : kStreams) {
    const std::string name = ImageName(stream.name, number);
    if (!source.Size(name).ok()) continue;
    ASSIGN_OR_RETURN(const std::string bytes, source.Get(name));
    ASSIGN_OR_RETURN(tables.*stream.messages, FromStream(stream.magic, bytes));
    has_tables = true;
  }
  const Status made = InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    if (entry.stasis_loopback_up()) RETURN_IF_ERROR(SetLoopbackUp());
    return has_tables ? RestoreNetworkTables(tables) : OkStatus();
  });
  RETURN_IF_ERROR(made);
  if (entry.has_stasis_firewall()) {
    RETURN_IF_ERROR(RestoreFirewall(ns_fd, entry.stasis_firewall()));
  }
  return RestoreNetSettings(ns_fd, entry, notes);
}

}  // namespace stasis::engine
