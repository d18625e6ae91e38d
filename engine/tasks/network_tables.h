// Addresses, neighbours, rules and routes of a network namespace.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// Each is one netlink message, without what changes by itself but that an address is tentative; its own length is in its header.
struct NetworkTables {
  std::vector<std::string> addresses, neighbours, rules, routes;

  bool operator==(const NetworkTables&) const = default;
};

/// Those of the network namespace of the calling thread, sorted. Of neighbours, permanent ones.
Result<NetworkTables> ReadNetworkTables();

/// Makes those of the network namespace of the calling thread the same; its devices have the numbers that they had.
/// FailedPrecondition: they cannot be made so.
Status RestoreNetworkTables(const NetworkTables& wanted);

/// Numbers of devices with an address that was still looked for elsewhere on their networks.
std::set<std::uint32_t> TentativeDevices(const NetworkTables& tables);

/// As `ip address save` and the like write them, and back: `magic`, then the messages.
std::string ToStream(std::uint32_t magic, const std::vector<std::string>& messages);
Result<std::vector<std::string>> FromStream(std::uint32_t magic, const std::string& stream);

inline constexpr std::uint32_t kAddressMagic = 0x47361222;  // iproute2's
inline constexpr std::uint32_t kRouteMagic = 0x45311224;
inline constexpr std::uint32_t kRuleMagic = 0x71706986;
inline constexpr std::uint32_t kNeighbourMagic = 0x7374a715;  // ours

}  // namespace stasis::engine
