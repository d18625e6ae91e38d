// The root file system's delta: what a container changed in its root, as an OCI layer in a tar.
//
// Format: OCI image-spec, "Image Layer Filesystem Changeset": a removed NAME is an empty file
// ".wh.NAME", a folder that hides what lies below it holds ".wh..wh..opq". CRI-O's form, a plain
// tar with a list of removed paths in the member "deleted.files", is read too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "archive/archive.h"
#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

inline constexpr std::string_view kRootfsDiffName = "rootfs-diff.tar";
inline constexpr std::string_view kDeletedFilesName = "deleted.files";

struct RootfsDiffRequest {
  int upper_fd = -1;  ///< The upper folder of the container's overlay, open for reading.
  /// Paths inside the container that are left out with all below them: destinations of its mounts.
  /// KernelPaths() are always left out.
  std::vector<std::string> leave_out = {};
  UserIds ids = {};  ///< Of the container: owners in the delta are as it sees them.
};

struct RootfsDiffReport {
  std::uint64_t entries = 0;
  std::uint64_t bytes = 0;  ///< Content of regular files.
  std::vector<std::string> notes;
};

/// Where a runtime mounts the kernel's file systems, or its own. Other writers leave out all of
/// /run, but where it is part of the root, programs keep there what they need to go on.
const std::vector<std::string>& KernelPaths();

/// Writes the delta into `out` and finishes it. Nothing may change the folder meanwhile: call it
/// while the container is frozen. Unimplemented: the overlay keeps content elsewhere (redirect_dir,
/// metacopy).
Result<RootfsDiffReport> WriteRootfsDiff(const RootfsDiffRequest& request,
                                         engine::ImageStream& out);

struct RootfsApplyRequest {
  /// The folder that is the container's root, writable, as seen from here: the runtime's bundle, or
  /// /proc/PID/root. Nothing outside of it is touched whatever the delta says.
  int root_fd = -1;
  /// Destinations of the live container's mounts: nothing is changed there or below.
  std::vector<std::string> leave_out = {};
  UserIds ids = {};                 ///< Of the container: what the owners in the delta are of.
  bool allow_devices = false;       ///< Else device nodes are skipped, with a note.
  bool allow_capabilities = false;  ///< Else security.capability is dropped, with a note.
  std::uint64_t max_entries = 1'000'000;
  std::uint64_t max_bytes = std::uint64_t{64} << 30;
};

/// Applies "rootfs-diff.tar", plain or compressed, and then "deleted.files" of `archive`; either
/// may be missing. InvalidArgument: an entry that climbs out, links to the outside, or is
/// malformed. After an error the root is half changed: the container must not be started.
Result<RootfsDiffReport> ApplyRootfsDiff(const RootfsApplyRequest& request, const Archive& archive);

}  // namespace stasis::archive
