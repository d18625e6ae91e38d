// What processes of a tree changed about the mounts that their runtime gave them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {

/// Mount points in a container that its runtime gives again at a restore; unset where nobody knows.
using OutsideMounts = std::optional<std::vector<std::string>>;

/// By the ids of the mounts.
struct MountChanges {
  std::set<int> made;     ///< Not the runtime's.
  std::set<int> access;   ///< Made read-only or writable.
  std::set<int> sharing;  ///< Made shared.
  std::vector<std::string> unmounted;

  /// The root directory is not that of the machine: what is not in `made` is given from outside, under the names in
  /// `keys` where they are not the place itself.
  bool own_root = false;
  std::map<int, std::string> keys;
  std::set<int> automatic;  ///< Of those: paths of this machine.
  std::string
      obstacle;  ///< Why not, where it is no such root only because of a mount that cannot be made again.

  bool empty() const {
    return made.empty() && access.empty() && sharing.empty() && unmounted.empty();
  }
};

/// Compares what is mounted in a tree's mount namespace, in the order of mountinfo, with what was given. Where its root
/// is its own, the mounts of other namespaces that its processes are in can follow.
using CompareMounts = std::function<Result<MountChanges>(std::span<const Mount> mounts)>;

}  // namespace stasis::engine
