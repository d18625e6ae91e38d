// The network namespace of a tree that has no network: nothing but the loopback device, as unshare(1) --net and
// systemd's PrivateNetwork= make it.
#pragma once

#include <optional>

#include "engine/base/status.h"

namespace stasis::engine {

/// Whether the loopback device is up in the network namespace that `ns_fd` has open; nothing where there is
/// more that a checkpoint does not have: other devices or addresses, rules of a firewall.
Result<std::optional<bool>> LoopbackOnly(int ns_fd);

/// Sets the loopback device of that namespace up, which gives it its addresses.
Status SetLoopbackUp(int ns_fd);

}  // namespace stasis::engine
