// What every process of the machine maps.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// Calls `look` with /proc/PID/maps of all processes but those that have ended. A process that may not be looked at
/// is passed over where it cannot have inherited memory from one of `relatives`, nor they from it.
/// FailedPrecondition: there may be one that cannot be looked at, also outside of our pid namespace. Errors of `look` end it.
Status ForEachMaps(const std::vector<pid_t>& relatives,
                   const std::function<Status(pid_t pid, const std::string& maps)>& look);

}  // namespace stasis::engine
