// A network device as rtnetlink(7) shows it, and which of them can be made again.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/route_netlink.h"

namespace stasis::engine {

/// A network namespace under its number in the images.
struct NumberedNetwork {
  std::uint32_t number = 0;
  int ns_fd = -1;
};

/// Where the other end of a device is, when that is in no network namespace of the tree.
inline constexpr std::uint32_t kOutsideNetwork = 0xFFFFFFFF;

/// Without what changes by itself. What its attributes are called is in linux/if_link.h; IFLA_LINK_NETNSID is the
/// number of a namespace in the images, or kOutsideNetwork.
struct NetworkDevice {
  std::uint32_t index = 0;
  std::uint32_t flags =
      0;  ///< Of those that say whether it runs only IFF_RUNNING, which is not compared.
  std::uint16_t type = 0;  ///< ARPHRD_…
  Attributes attributes;
  Attributes data;        ///< What is of its kind (IFLA_INFO_DATA),
  Attributes slave_data;  ///< and of its master's (IFLA_INFO_SLAVE_DATA).
  std::string kind, slave_kind;
  std::optional<image::TunLinkEntry> tun;  ///< Of one that programs send through (/dev/net/tun).

  std::string name() const;
  std::uint32_t mtu() const;
  std::uint32_t link() const;    ///< The number of its other end, or of what it is on; 0: none
  std::uint32_t master() const;  ///< 0: none
  bool is_loopback() const;
};

/// All but those that modules put into every network namespace, as long as these are down. `all`: the networks in which
/// other ends may be. Unimplemented: one of a kind that nobody makes again, or one with traffic control.
Result<std::vector<NetworkDevice>> ReadDevices(int ns_fd, std::span<const NumberedNetwork> all);

/// As a message of rtnetlink for the images, and back. DataLoss: it is none.
std::string ToMessage(const NetworkDevice& device);
Result<NetworkDevice> ToDevice(std::string_view message);

/// What is not as it was, in a few words; empty: all is. `exact`: also what a kernel may show otherwise that is newer or
/// older than the one before.
std::string Difference(const NetworkDevice& before, const NetworkDevice& now, bool exact);

/// Those of `data` that a request may have.
Attributes SettableData(const NetworkDevice& device);

/// CRIU's record of it in netdev-N, but for `tun`.
image::NetDeviceEntry ToNetDeviceEntry(const NetworkDevice& device, std::uint32_t own_number);

}  // namespace stasis::engine
