#pragma once

#include <string>

#include "archive/checkpoint_image.h"

namespace stasis::archive {

/// Writes `image` of `archive` as an OCI image layout (OCI image-spec, image-layout.md), which names it
/// `name` in its index. A `path` that ends in ".tar" becomes a tar of the layout, any other a folder, which
/// must not exist. AlreadyExists, ResourceExhausted; nothing is left behind on failure.
Status WriteOciLayout(const Archive& archive, const CheckpointImage& image, const std::string& name,
                      const std::string& path);

}  // namespace stasis::archive
