// What a container has in the tmpfs mounts that its runtime made for it (/dev is one).
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::cri {

/// Writes tmpfs-dev-N.tar.gz.img for each tmpfs of process `pid` that is not mounted at one of
/// `outside`. For CRIU, which makes them anew at a restore; a runtime that restores through us does so
/// itself. What is too large is left out, with a note. To be called while the container stands still.
Status WriteTmpfsMounts(pid_t pid, const std::vector<std::string>& outside,
                        engine::ImageSink& images, std::vector<std::string>& notes);

}  // namespace stasis::cri
