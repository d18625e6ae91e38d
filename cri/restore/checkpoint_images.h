// Which images are checkpoints, and the way to their files.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "cri/proxy/upstream.h"
#include "cri/restore/records.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// An image that holds a checkpoint, or the archive itself.
struct CheckpointImage {
  std::string id = {};        ///< As CRI shows it; the path of an archive.
  std::string ref = {};       ///< "name@sha256:…" where there is one, else the id.
  std::string chain_id = {};  ///< Of its unpacked layer. Empty: the path of an archive is in `id`.
};

/// The marks that make an image a checkpoint: annotations of its manifest (containerd tells them by
/// an API of its own, CRI-O in ImageStatus), or labels of its configuration.
class CheckpointImages {
 public:
  explicit CheckpointImages(Upstream& upstream) : upstream_(upstream) {}

  /// Nothing: `image` is not a checkpoint, or is not there (which the runtime says better).
  Result<std::optional<CheckpointImage>> Find(const runtime::v1::ImageSpec& image,
                                              const CallLimits& limits);

  /// Makes the files of `image` readable until Close. `sandbox_id`: where its container will run.
  Result<CheckpointPlace> Open(const CheckpointImage& image, const std::string& sandbox_id,
                               const CallLimits& limits);

  /// Gives back what Open took. Not an error when it is gone already.
  Status Close(const CheckpointPlace& place, const CallLimits& limits);

  /// Gives back views of ours that no record in `records` has: from a stasisd that was killed
  /// between taking a view and recording it.
  Status CloseForgotten(const Records& records, const CallLimits& limits);

 private:
  Result<bool> ManifestSaysSo(const std::string& image_id, const CallLimits& limits);
  Result<std::string> ReadBlob(const std::string& digest, const CallLimits& limits);
  Result<std::string> SnapshotterOf(const std::string& sandbox_id, const CallLimits& limits);

  Upstream& upstream_;
  std::mutex mutex_;
  // By image id, which is the digest of the image: the answer cannot change.
  std::map<std::string, std::optional<CheckpointImage>> known_;
};

}  // namespace stasis::cri
