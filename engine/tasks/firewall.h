// The rules of a network namespace's firewall: of nf_tables, and of iptables in both of its kinds.
#pragma once

#include <optional>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// That of the network namespace which `ns_fd` has open, tried out in a new one; nothing where there is none.
/// Unimplemented: one that cannot be made again, or not without programs that this machine lacks.
Result<std::optional<image::FirewallEntry>> ReadFirewall(int ns_fd);

/// Makes it in that namespace, which has none. FailedPrecondition: it is not the same then.
Status RestoreFirewall(int ns_fd, const image::FirewallEntry& entry);

}  // namespace stasis::engine
