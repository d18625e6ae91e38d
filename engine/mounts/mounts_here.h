// The mounts of a tree on the host, compared with those of this program.
#pragma once

#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "engine/base/status.h"
#include "engine/mounts/mount_changes.h"
#include "engine/mounts/mount_entry.h"

namespace stasis::engine {

/// Where it is, what of a file system is there, and of which kind.
using MountKey = std::tuple<std::string, std::string, std::uint32_t, std::string>;
MountKey KeyOf(const image::MntEntry& mount);

/// What `mountinfo`, text of /proc/PID/mountinfo, lists.
Result<std::multiset<MountKey>> MountsIn(const std::string& mountinfo);

/// A CompareMounts: what is not mounted in this thread's mount namespace was made inside. None at all, where some of
/// it cannot be made again: a restore then says what it lacks. Where the root is not ours, all was made inside that
/// can be made again and is not in `external`, of --external (see ParseExternalMounts, whose errors it gives).
/// `pid` is a process that has them.
Result<MountChanges> CompareWithHere(std::span<const Mount> mounts, pid_t pid,
                                     const std::vector<std::string>& external);

}  // namespace stasis::engine
