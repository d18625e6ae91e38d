// In which order, and of what, the mounts that processes of a tree made are made again.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

struct PlannedMount {
  const image::MntEntry* entry = nullptr;

  /// Of a file system of its own, else a bind mount of a folder or file of another mount.
  bool is_new = false;
  std::uint32_t source = 0;    ///< Id of that mount ...
  std::string path_in_source;  ///< ... and the path from its root; empty: the root itself.

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

}  // namespace stasis::engine
