// Settings (sysctl) of an IPC namespace.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// Raises the limits of the IPC namespace of `pid` to those of `settings`, so that its objects can be made.
Status RaiseIpcLimits(pid_t pid, const image::IpcVarEntry& settings);
/// Gives it all of `settings`, once its objects are there; `notes` says which it does not take.
Status RestoreIpcSettings(pid_t pid, const image::IpcVarEntry& settings,
                          std::vector<std::string>& notes);

}  // namespace stasis::engine
