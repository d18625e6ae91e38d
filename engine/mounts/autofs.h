// autofs: mounts that a daemon of the tree's own fills when somebody looks.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string_view>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// What its options say (super_options of mountinfo), as an image has it; the process group is the one that the
/// reader of mountinfo sees. With `pipe`, the inode of the pipe by which the daemon is asked; unset where nobody is
/// any more. DataLoss: one is missing.
struct AutofsOptions {
  image::AutofsEntry entry;
  std::optional<std::uint64_t> pipe;
};
Result<AutofsOptions> ParseAutofs(std::string_view options);

/// A file system of this kind, all of it, that a process of the tree made.
bool IsOwnAutofs(const image::MntEntry& entry);

/// Of a dump: adds the folders of those of `mounts` whose daemon offers some. `proc`: /proc/PID of a process that has
/// these mounts. Makes nobody mount anything.
Status ReadAutofsFolders(int proc, std::span<image::MntEntry> mounts);

/// Those that a restore has made, by root_dev in mountpoints-N.img: the root directory of each, open to be read.
using AutofsRoots = std::map<std::uint32_t, UniqueFd>;

/// Before `root`, the tree's, makes one: puts it into a process group of its pid namespace, if it is in none.
Status JoinOwnGroup(RestoredProcess& root);

/// Of what is made and has all its folders: asks nobody any more, and whoever looks sees what is there.
Status Silence(const AutofsRoots& roots, std::span<const image::MntEntry> all);

/// Has each ask its daemon again, which has its descriptors by now and no less rights than a restore begins with.
Status ConnectAutofs(std::span<RestoredProcess> processes, const AutofsRoots& roots,
                     const ImageSource& source);

}  // namespace stasis::engine
