// A user namespace that a tree on the host has to itself: its maps of ids, in the images and for a new one.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/checkpoint_images.h"
#include "engine/image/image_io.h"

namespace stasis::engine {

/// Unimplemented: one that cannot be made again, for it has no user 0 or group 0 to make it with.
Status CheckUserNamespace(const UserIds& ids);

/// userns-N.img, N being `number`.
Status WriteUserNamespace(const UserIds& ids, std::uint32_t number, ImageSink& sink);

/// The maps of the one that the tree had; nothing where it was in that of the dumper. DataLoss: they are not in the
/// images, or impossible.
Result<std::optional<UserIds>> SavedUserNamespace(const CheckpointImages& images,
                                                  const ImageSource& source);

/// Gives the user namespace of `pid`, which is new, these maps. As seen by us, who are in the one above.
Status WriteMaps(pid_t pid, const UserIds& ids);

/// In a process of such a namespace that has its maps: becomes its user and group 0, and leaves the groups that it
/// came with. System calls only; gives 0 or an errno.
int BecomeRootInside();

}  // namespace stasis::engine
