// The mounts of a tree on the host whose root was not that of the machine.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/mounts/mount_namespaces.h"
#include "engine/mounts/outside_mounts.h"
#include "engine/mounts/pending_mounts.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Makes `directory`, a path of the machine, the root of the mount namespace of `root`, which has it to itself, and
/// all the other entries of `all`, as in mountpoints-N.img, below it. What was mounted is gone there. `all` begins
/// with that namespace; the others that processes of the tree are in are made first, and put into `made` after it.
///
/// What is to be done later, by FinishMounts(), is put into `later`.
///
/// FailedPrecondition: what they need is not there, or `external` does not give it; with the next step.
/// Unimplemented: one that cannot be made again.
Status RestoreRootMounts(RestoredProcess& root, std::span<const NamespaceMounts> all,
                         const std::string& directory, const ExternalMounts& external,
                         const FillTmpfs& fill, PendingMounts& later, MountNamespaces& made);

}  // namespace stasis::engine
