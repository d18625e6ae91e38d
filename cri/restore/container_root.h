// Into a container's mount namespace, from outside.
#pragma once

#include <sys/types.h>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/proc/mountinfo.h"

namespace stasis::cri {

/// The root file system of process `pid` alone, without the mounts on top of it, writable even
/// where the container sees it read-only. What is written through it reaches no volume and no host
/// path.
Result<UniqueFd> OpenWritableRoot(pid_t pid);

/// The root of a mount of process `pid`, without the mounts on top of it: what they hide is to be seen. NotFound:
/// something else is mounted over all of it.
Result<UniqueFd> OpenMountAlone(pid_t pid, const engine::Mount& mount);
/// The same of one that others are mounted over, at its place or above; found by its file system.
Result<UniqueFd> OpenHiddenMount(pid_t pid, const engine::Mount& mount);

/// Takes the placeholder out of the mount namespace of process `pid`.
Status HidePlaceholder(pid_t pid);

}  // namespace stasis::cri
