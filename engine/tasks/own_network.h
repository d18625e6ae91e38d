// A network namespace that is made again: nothing but the loopback device, as unshare(1) --net and systemd's
// PrivateNetwork= make it, with addresses, routes, rules, settings and a firewall.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/network_tables.h"

namespace stasis::engine {

struct OwnNetwork {
  image::NetnsEntry entry;
  NetworkTables tables;
};

/// What is in the network namespace that `ns_fd` has open. Unimplemented for what cannot be made again.
Result<OwnNetwork> ReadOwnNetwork(int ns_fd);

/// ifaddr-N, route-N, rule-N and neighbour-N; netns-N is the caller's to write.
Status WriteNetworkTables(const NetworkTables& tables, std::uint32_t number, ImageSink& sink);

/// Makes what checkpoint `source` has under `number` in a new namespace; `notes` says which settings it does not take.
Status MakeOwnNetwork(int ns_fd, const image::NetnsEntry& entry, std::uint32_t number,
                      const ImageSource& source, std::vector<std::string>& notes);

}  // namespace stasis::engine
