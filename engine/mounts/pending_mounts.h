// What of the mounts of a tree with a root of its own is to be done once its files are there.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/autofs.h"
#include "engine/mounts/mount_namespaces.h"
#include "engine/mounts/mount_plan.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// A mount that is to be read-only once what was deleted on it is made again: a descriptor of the root.
struct PendingReadOnly {
  int mount = -1;
  bool this_mount = false, whole_file_system = false;
  std::uint32_t number = 0;  ///< Of its mount namespace.
};

/// A mount of a terminal of the tree's own, as /dev/console may be. Descriptors of the root.
struct PendingTerminal {
  image::MntEntry entry;
  PlannedMount::Sharing sharing = PlannedMount::Sharing::kPrivate;
  int devpts = -1, place = -1;
  std::string name;                         ///< In the devpts: its number.
  std::uint32_t number = 0, of_devpts = 0;  ///< Of the mount namespaces of both.
};

struct PendingMounts {
  std::vector<PendingReadOnly> read_only;
  std::vector<PendingTerminal> terminals;
  AutofsRoots autofs;  ///< For ConnectAutofs().
};

/// Does it. FailedPrecondition: a terminal is not there.
Status FinishMounts(RestoredProcess& root, const PendingMounts& mounts,
                    const MountNamespaces& namespaces);

/// Whether the tree has the other end of the terminal `index` of the devpts on `device`.
using IsOwnTerminal = std::function<bool(dev_t device, std::uint32_t index)>;

/// Of a dump: has those of `mounts` given from outside that are of a terminal which is not the tree's own.
void GiveTerminals(std::vector<image::MntEntry>& mounts, const IsOwnTerminal& is_own);

}  // namespace stasis::engine
