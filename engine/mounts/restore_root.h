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
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// A mount that is to be read-only once what was deleted on it is made again: a descriptor of the root.
struct PendingReadOnly {
  int mount = -1;
  bool this_mount = false, whole_file_system = false;
  std::uint32_t number = 0;  ///< Of its mount namespace.
};

/// Makes `directory`, a path of the machine, the root of the mount namespace of `root`, which has it to itself, and
/// all the other entries of `all`, as in mountpoints-N.img, below it. What was mounted is gone there. `all` begins
/// with that namespace; the others that processes of the tree are in are made first, and put into `made` after it.
///
/// Those that are to be made read-only later, by MakeReadOnly(), are put into `read_only`.
///
/// FailedPrecondition: what they need is not there, or `external` does not give it; with the next step.
/// Unimplemented: one that cannot be made again.
Status RestoreRootMounts(RestoredProcess& root, std::span<const NamespaceMounts> all,
                         const std::string& directory, const ExternalMounts& external,
                         const FillTmpfs& fill, std::vector<PendingReadOnly>& read_only,
                         MountNamespaces& made);

Status MakeReadOnly(RestoredProcess& root, std::span<const PendingReadOnly> mounts,
                    const MountNamespaces& namespaces);

}  // namespace stasis::engine
