// The content of a tmpfs of a container, as CRIU keeps it beside its images (tmpfs-dev-N.tar.gz.img):
// a tar, compressed by gzip.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/status.h"

namespace stasis::archive {

/// All that the file system of the folder `fd` (open for reading) has below it; folders on which
/// something is mounted are empty. ResourceExhausted: its regular files have over `max_bytes`.
Result<std::string> ReadTmpfsContent(int fd, std::uint64_t max_bytes);

}  // namespace stasis::archive
