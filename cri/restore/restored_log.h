// The container's log over a restore: the lines from before the checkpoint, and why a restore
// failed.
#pragma once

#include <string>
#include <string_view>

#include "archive/archive.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// Appends the log in `checkpoint` to the file `log_path`. Nothing to do where either is not there.
Status AppendSavedLog(const archive::Archive& checkpoint, const std::string& log_path);

/// Appends a line to `log_path`, as if the container had written it to its standard error.
Status AppendLine(const std::string& log_path, std::string_view text);

}  // namespace stasis::cri
