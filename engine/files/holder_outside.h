// Who else has a file open that a dump is about to empty for a moment.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// A process outside the tree, and not ourselves, of which `is_wanted` is true for one of its links /proc/PID/fd/N;
/// 0: none. What ends meanwhile is passed over.
Result<pid_t> HolderOutside(
    const FileDumpContext& context,
    const std::function<bool(const std::filesystem::path& link)>& is_wanted);

}  // namespace stasis::engine
