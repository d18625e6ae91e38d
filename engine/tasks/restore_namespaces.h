// Says which namespaces of a checkpoint nobody has made again.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/checkpoint_images.h"

namespace stasis::engine {

/// Namespaces are whoever starts the restore's to make: a runtime's, for a container. Adds a note for each that
/// the tree had to itself at the checkpoint, while what is to become it, `root_proc` (its folder of /proc), is
/// in ours: its mounts, names or interfaces are then those of this machine.
Status NoteMissingNamespaces(const CheckpointImages& images, int root_proc,
                             std::vector<std::string>& notes);

}  // namespace stasis::engine
