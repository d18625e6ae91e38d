// Into a container's mount namespace, from outside.
#pragma once

#include <sys/types.h>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

/// The root file system of process `pid` alone, without the mounts on top of it, writable even
/// where the container sees it read-only. What is written through it reaches no volume and no host
/// path.
Result<UniqueFd> OpenWritableRoot(pid_t pid);

/// Takes the placeholder out of the mount namespace of process `pid`.
Status HidePlaceholder(pid_t pid);

}  // namespace stasis::cri
