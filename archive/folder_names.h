#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::archive {

/// What the folder `fd` holds but for "." and "..", sorted: archives of the same tree are the same.
Result<std::vector<std::string>> FolderNames(int fd);

}  // namespace stasis::archive
