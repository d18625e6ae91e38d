// Mounts that processes of a tree made, made again by the root of the tree.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/mounts/pending_mounts.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Makes the entries of `all` that are marked as made inside or changed so again in the mount namespace of
/// `root`, by its own calls and so with its rights: nothing that it could not do itself. `all`: what was mounted in
/// the tree's namespace, as in mountpoints-N.img.
///
/// What is to be done later is put into `later`.
///
/// FailedPrecondition: what they need is not there, or shared with outside of the container. PermissionDenied: the
/// root has no right to mount. As PlanMounts for what cannot be made again.
Status RestoreMounts(RestoredProcess& root, std::span<const image::MntEntry> all,
                     const FillTmpfs& fill, PendingMounts& later, std::vector<std::string>& notes);

}  // namespace stasis::engine
