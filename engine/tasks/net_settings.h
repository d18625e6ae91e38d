// Settings (sysctl) of a network namespace.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// Adds those of the network namespace that `ns_fd` has open to `entry`.
Status ReadNetSettings(int ns_fd, image::NetnsEntry& entry);

/// Gives that namespace those of `entry`; `notes` says which it does not take.
Status RestoreNetSettings(int ns_fd, const image::NetnsEntry& entry,
                          std::vector<std::string>& notes);

/// No address in that namespace is looked for elsewhere on its network from here on (ipv6 accept_dad), but for those of
/// the devices `but_for`. What was, for
/// RestoreNetSettings().
Result<image::NetnsEntry> StopLookingForDuplicates(int ns_fd, const std::set<std::string>& but_for);

}  // namespace stasis::engine
