// The program that a restored container is started with, and is not any more once it is restored.
#pragma once

namespace stasis::cri {

/// Where the placeholder is in the container: /dev is a tmpfs of the runtime's making there, so
/// that no mount point is left in the root file system, even where that is read-only.
inline constexpr const char* kPlaceholderPath = "/dev/stasis-placeholder";
/// Its first argument: wait to be restored.
inline constexpr const char* kPlaceholderArgument = "hold";

}  // namespace stasis::cri
