// The content of a tmpfs that a restore makes again: a tar, which the engine does not read.
#pragma once

#include <cstdint>
#include <functional>

#include "engine/base/status.h"

namespace stasis::engine {

/// Puts into the folder `folder_fd`, the root of a new tmpfs, what that with the device number `device` (root_dev
/// in mountpoints-N.img) held.
using FillTmpfs = std::function<Status(std::uint32_t device, int folder_fd)>;

}  // namespace stasis::engine
