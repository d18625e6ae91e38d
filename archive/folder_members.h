// The members of an archive that was unpacked into a folder, as a runtime's snapshot of a
// checkpoint image.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

/// Names are relative to `folder` ("checkpoint/core-1.img"). InvalidArgument for anything in it
/// that is neither a regular file nor a folder; ResourceExhausted over `max_members`.
Result<std::unique_ptr<engine::ImageSource>> OpenFolderMembers(UniqueFd folder,
                                                               std::uint64_t max_members);

}  // namespace stasis::archive
