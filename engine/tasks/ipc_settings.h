// Settings (sysctl) of an IPC namespace.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// Gives the IPC namespace of `pid` those of `settings`; `notes` says which it does not take.
Status RestoreIpcSettings(pid_t pid, const image::IpcVarEntry& settings,
                          std::vector<std::string>& notes);

}  // namespace stasis::engine
