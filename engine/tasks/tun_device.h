// Network devices whose packets programs read and write (/dev/net/tun).
#pragma once

#include <functional>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/tasks/network_device.h"

namespace stasis::engine {

/// A descriptor of ours for an open file description of the tree's that has the device `name`; NotFound: there is none.
using FindTun = std::function<Result<UniqueFd>(const std::string& name)>;

/// Fills `tun` of `device`, which is in the network namespace `ns_fd`. Unimplemented: only programs outside of the tree
/// have it open, or it has a filter.
Status ReadTunDevice(int ns_fd, NetworkDevice& device, const FindTun& find);

/// Makes it in that namespace, down. It lasts, also where it did not, until TakeTunDevice().
Status MakeTunDevice(int ns_fd, const NetworkDevice& device);

}  // namespace stasis::engine
