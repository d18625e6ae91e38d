// Work in another namespace than ours.
#pragma once

#include <functional>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis {

/// Runs `step` in the namespace that `ns_fd` has open, of `type` (CLONE_NEWNET, CLONE_NEWIPC, …), and gives
/// its status. PermissionDenied: CAP_SYS_ADMIN is needed there. setns(2) moves one thread, and the
/// caller's must stay where it is, so `step` runs on another. Source: setns(2).
Status InNamespace(int ns_fd, int type, const std::function<Status()>& step);

/// A new network namespace, empty but for its loopback device; of the user namespace that the one of `ns_fd` is of.
Result<UniqueFd> MakeNetwork(int ns_fd);

/// Whether we see the pids of the whole machine.
bool InFirstPidNamespace();

}  // namespace stasis
