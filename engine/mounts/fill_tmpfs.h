// The content of a tmpfs that a restore makes again: a tar, which the engine does not read.
#pragma once

#include <cstdint>
#include <functional>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"

namespace stasis::engine {

/// Puts into the folder `folder_fd`, the root of a new tmpfs of the user namespace of `ids`, what that with the device
/// number `device` (root_dev in mountpoints-N.img) held.
using FillTmpfs = std::function<Status(std::uint32_t device, int folder_fd, const UserIds& ids)>;

}  // namespace stasis::engine
