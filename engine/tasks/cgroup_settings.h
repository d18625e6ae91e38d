// The settings of a cgroup that a checkpoint keeps: files that its owner writes, in an order in which they
// can be written.
#pragma once

#include <string_view>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// The settings, owner (as in the user namespace of `ids`) and mode of the cgroup that `folder_fd` has open.
Status ReadCgroupSettings(int folder_fd, const UserIds& ids, image::CgroupDirEntry& entry);

/// Puts those back that differ. An error names the file; the others are written all the same.
Status WriteCgroupSettings(int folder_fd, const image::CgroupDirEntry& entry);

/// Owner and mode of a cgroup that was just made, and of its files that a delegate writes.
Status WriteCgroupOwner(int folder_fd, const image::CgroupDirEntry& entry, const UserIds& ids);

}  // namespace stasis::engine
