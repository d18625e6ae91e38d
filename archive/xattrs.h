// Extended attributes of files, xattr(7).
#pragma once

#include <map>
#include <string>

#include "engine/base/status.h"

namespace stasis::archive {

using Xattrs = std::map<std::string, std::string>;

/// Those of the file behind `path_fd`, which may be O_PATH but not of a symbolic link: a link's own cannot be reached
/// through /proc, and user.* cannot be on one.
Result<Xattrs> ReadXattrs(int path_fd);

}  // namespace stasis::archive
