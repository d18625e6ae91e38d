// Where a container's changes to its root file system are.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

/// The "upperdir=" of the root mount in `mountinfo`, the text of /proc/PID/mountinfo; nothing when the
/// root is no overlay, or has no upper folder.
std::optional<std::string> UpperFolderIn(std::string_view mountinfo);

/// The upper folder of the overlay that is the root of process `pid`, for reading.
Result<std::optional<UniqueFd>> OpenUpperFolder(pid_t pid);

}  // namespace stasis::cri
