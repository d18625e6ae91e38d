// A mount as it is in mountpoints-N.img.
#pragma once

#include <string>

#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/mount_changes.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {

/// As it is in an image, but for what is given from outside.
image::MntEntry ToMountEntry(const Mount& mount);

/// With the key of one that is given from outside, and with what was changed about it.
image::MntEntry ToMountEntry(const Mount& mount, const OutsideMounts& outside,
                             const MountChanges& changes);

/// "tmpfs": its type as mount(2) has it.
std::string FsTypeName(const image::MntEntry& entry);

/// What is mounted on it, or taken from it, comes to its peers too: mount_namespaces(7), "Shared subtrees".
bool IsShared(const Mount& mount);

}  // namespace stasis::engine
