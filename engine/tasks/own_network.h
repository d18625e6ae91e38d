// Network namespaces that are made again, with devices, addresses, routes, rules, settings and a firewall.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/network_device.h"
#include "engine/tasks/network_tables.h"
#include "engine/tasks/tun_device.h"

namespace stasis::engine {

struct OwnNetwork {
  image::NetnsEntry entry;
  NetworkTables tables;
  std::vector<NetworkDevice> devices;
};

/// What is in one. `all`: every network of the tree. Unimplemented for what cannot be made again.
Result<OwnNetwork> ReadOwnNetwork(const NumberedNetwork& where,
                                  std::span<const NumberedNetwork> all, const FindTun& find_tun);

/// Makes all of these together, in namespaces that are nobody's, before anything depends on it. Unimplemented: they are
/// not as they were then.
struct NetworkToTry {
  NumberedNetwork where;
  const OwnNetwork* network = nullptr;
};
Status TryOwnNetworks(std::span<const NetworkToTry> networks);

/// netdev-N, stasis-link-N, ifaddr-N, route-N, rule-N and stasis-neighbour-N; netns-N is the caller's to write.
Status WriteOwnNetwork(const OwnNetwork& network, std::uint32_t number, ImageSink& sink);

/// Whether checkpoint `source` has what is needed to make the network `number` again.
Result<bool> CanMakeNetwork(std::uint32_t number, const ImageSource& source);

/// A new namespace for the network of that number.
struct EmptyNetwork {
  std::uint32_t number = 0;
  UniqueFd ns;
};
/// The rules of one that nothing from outside reaches: its sockets are made before these.
struct PendingFirewall {
  UniqueFd ns;
  image::FirewallEntry rules;
};
/// Makes in these what the checkpoint has of them; `external` as in Options. `notes` says which settings it does not
/// take. `firewalls` are left to be made once all files are there: a connection may be made again by packets that they
/// would drop.
Status MakeOwnNetworks(std::span<const EmptyNetwork> networks, const ImageSource& source,
                       const std::vector<std::string>& external,
                       std::vector<PendingFirewall>& firewalls, std::vector<std::string>& notes);
Status MakeFirewalls(std::span<const PendingFirewall> firewalls);

}  // namespace stasis::engine
