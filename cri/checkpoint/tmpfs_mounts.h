// What is in the tmpfs mounts of a container.
#pragma once

#include <sys/types.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "archive/tmpfs_content.h"
#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/mounts/mount_changes.h"

namespace stasis::cri {

/// For CRIU, whose restore makes each tmpfs of a container anew, but those mounted at `outside`, and wants its
/// content: what is in those of process `pid`, which stands still. What is too large is left out and named in
/// `notes`. Those that processes made, as `changes` says, are for a restore of ours too. ResourceExhausted: these
/// hold too much; Unimplemented: one of them cannot be read.
Status WriteTmpfsMounts(pid_t pid, const std::vector<std::string>& outside,
                        const engine::MountChanges& changes, engine::ImageSink& images,
                        std::vector<std::string>& notes);

/// The latter alone, also of the mount namespaces of `others`, which are in the same tree and stand still too.
Status WriteTmpfsMadeInside(pid_t pid, std::span<const pid_t> others,
                            const engine::MountChanges& changes, engine::ImageSink& images);

/// Puts back what was in those that processes made, as far as `rights` goes, and tells what of it is not as it was.
/// Outlived by `images`.
engine::FillTmpfs FillFrom(const engine::ImageSource& images, const archive::TmpfsRights& rights,
                           std::function<void(const std::string&)> note);

}  // namespace stasis::cri
