// What an IPC namespace of the tree's own holds.
#pragma once

#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

struct IpcObjects {
  image::IpcVarEntry settings;  ///< Sysctls, without which CRIU restores no such namespace.
  ImageFileBuilder semaphores{"ipcns-sem"};
  ImageFileBuilder messages{"ipcns-msg"};
  std::vector<int> idle_segments;  ///< Ids of the System V segments that nobody is attached to.
};

/// Those of the IPC namespace of a task, whose folder in /proc is `task_fd`. PermissionDenied: CAP_SYS_ADMIN
/// is needed to enter it. Unimplemented: it has objects that a restore would lose.
Result<IpcObjects> ReadIpc(int task_fd);

}  // namespace stasis::engine
