// The locks on the files of a tree under restore, once its processes have their descriptors.
#pragma once

#include <sys/types.h>

#include <map>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/checkpoint_images.h"
#include "engine/files/table_actor.h"
#include "engine/image/image_io.h"

namespace stasis::engine {

/// Has each process of `actors` (by its pid in the images) take those that it held. `files` are the same open
/// files as the processes have.
Status TakeFileLocks(const CheckpointImages& images, const ImageSource& source,
                     std::map<FileKey, UniqueFd>& files, std::map<pid_t, TableActor>& actors);

}  // namespace stasis::engine
