// In which order, and of what, the mounts that processes of a tree made are made again.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

struct PlannedMount {
  const image::MntEntry* entry = nullptr;

  /// Of a file system of its own, else a bind mount of a folder or file of another mount.
  bool is_new = false;
  std::string outside;         ///< Of what is at this path of the machine, if not empty; else:
  std::uint32_t source = 0;    ///< Id of that mount ...
  bool is_removed = false;     ///< A folder that is not there any more.
  bool is_terminal = false;    ///< Of a devpts of its own: there when its terminal is.
  std::string path_in_source;  ///< ... and the path from its root; empty: the root itself.

  bool is_root =
      false;  ///< Of a mount namespace, not of the tree's root, and on no other mount; else:
  std::uint32_t parent = 0;    ///< Id of the mount that it is mounted on ...
  std::string path_in_parent;  ///< ... and the place from its root; empty: on top of it.

  /// Once it is in its place.
  enum class Sharing { kAsSource, kPrivate, kSlave, kShared, kUnbindable };
  Sharing sharing = Sharing::kPrivate;
};

/// The entries of `all` that are marked as made inside, each after what it needs. The result points into `all`.
/// Unimplemented: one that cannot be made again, by its place and why. InvalidArgument: entries that no kernel
/// gives. No system call is made here; what a path leads to at the restore is to be looked at then.
Result<std::vector<PlannedMount>> PlanMounts(std::span<const image::MntEntry> all);

/// Paths of the machine that are mounted in a tree's root, by the ids of its mounts.
using OutsidePaths = std::map<std::uint32_t, std::string>;

struct RootPlan {
  std::uint32_t root = 0;  ///< Id of the mount that is the root of all.
  /// All others, each after what it needs. With whom they share is not in it. They point into the entries.
  std::vector<PlannedMount> mounts;
  std::vector<std::pair<std::uint32_t, Status>>
      refused;  ///< Those that cannot be made again, by their ids.
};

/// The same for a tree whose root is not that of the machine: all mounts of its mount namespace but the root,
/// which is given from outside, and then those of other mount namespaces that its processes are in.
/// InvalidArgument: entries that no kernel gives.
Result<RootPlan> PlanRoot(std::span<const image::MntEntry> all, const OutsidePaths& outside);

}  // namespace stasis::engine
