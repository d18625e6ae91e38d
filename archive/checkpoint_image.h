// The OCI image of a checkpoint: one layer, which is the archive itself, and annotations that tell runtimes
// that this image is to be restored.
// Source: OCI image-spec v1.1 (config.md, manifest.md, annotations.md); checkpointctl's annotation keys.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "archive/archive.h"
#include "engine/base/status.h"

namespace stasis::archive {

inline constexpr std::string_view kManifestMediaType = "application/vnd.oci.image.manifest.v1+json";
inline constexpr std::string_view kConfigMediaType = "application/vnd.oci.image.config.v1+json";
inline constexpr std::string_view kLayerMediaType = "application/vnd.oci.image.layer.v1.tar";
inline constexpr std::string_view kZstdLayerMediaType =
    "application/vnd.oci.image.layer.v1.tar+zstd";

struct CheckpointImage {
  std::string layer_digest;  ///< "sha256:…", like the other two.
  std::uint64_t layer_size = 0;
  std::string config;  ///< JSON, to the byte.
  std::string config_digest;
  std::string manifest;
  std::string manifest_digest;
};

/// What tells about the checkpoint: on the manifest as annotations, in the config as labels.
Result<std::map<std::string, std::string>> ImageAnnotations(const Archive& archive);

/// Describes the image of `archive`, reading it once for its digest. FailedPrecondition for an archive that
/// was unpacked into a folder: its bytes are gone. Cancelled: `stop` came first.
Result<CheckpointImage> DescribeImage(const Archive& archive, const ProgressCall& progress = {},
                                      const std::stop_token& stop = {});

}  // namespace stasis::archive
