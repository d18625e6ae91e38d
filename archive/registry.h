// Pushes checkpoint images by the OCI distribution API (distribution-spec v1.1).
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "archive/checkpoint_image.h"
#include "archive/image_reference.h"
#include "engine/base/status.h"

namespace stasis::archive {

struct PushOptions {
  bool plain_http = false;  ///< Loopback registries are spoken to without TLS anyway.
  std::string auth_file;    ///< Empty: see FindCredentials.
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
  std::stop_token stop = {};
};

struct PushReport {
  std::uint64_t uploaded_bytes = 0;  ///< Less than the image when the registry had parts of it.
  std::string manifest_digest;
};

/// Uploads what the registry does not have yet, the layer straight from the archive's file, and then the
/// manifest. Unavailable: no answer. Cancelled: `stop` came first. PermissionDenied: credentials are missing or wrong. Other refusals
/// carry the registry's own words.
Result<PushReport> PushImage(const Archive& archive, const CheckpointImage& image,
                             const ImageReference& reference, const PushOptions& options);

}  // namespace stasis::archive
