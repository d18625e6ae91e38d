// The settings of an ipc namespace, without which CRIU restores none.
#pragma once

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// The sysctls of the ipc namespace of a task, whose folder in /proc is `task_fd`.
/// PermissionDenied: CAP_SYS_ADMIN is needed to enter it. Unimplemented: it has System V objects that a
/// restore would lose.
Result<image::IpcVarEntry> ReadIpcVariables(int task_fd);

}  // namespace stasis::engine
