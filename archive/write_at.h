// Writes at a place of a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/status.h"

namespace stasis::archive {

/// All of `bytes` at `offset` of `fd`, whose own position does not change.
Status WriteAllAt(int fd, std::span<const std::byte> bytes, std::uint64_t offset);

}  // namespace stasis::archive
