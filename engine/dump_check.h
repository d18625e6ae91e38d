// Can this tree be checkpointed? Answered while it runs.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/mounts/mount_changes.h"
#include "engine/options.h"

namespace stasis::engine {

struct DumpCheck {
  std::uint64_t processes = 0, threads = 0, files = 0;
  /// Why a dump would be refused, a sentence each that names pid and thing. Empty: nothing is known to be
  /// in the way.
  std::vector<std::string> obstacles;
  /// What a restore would not bring back, as in DumpReport.
  std::vector<std::string> notes;
};

/// How memory is looked at: with the flags of its areas, for which the kernel looks at every page (20 ms for 1 GiB), or
/// without where every mapped file has a path.
enum class MemoryLook { kWhole, kQuick };

/// Looks at the tree under `root`, which runs on undisturbed: nothing of it is stopped, traced or changed.
/// `compare_mounts` is that of a DumpRequest. The answer holds for that moment, and what only a stopped thread tells (a
/// local descriptor table, syscall user dispatch) is not in it. What ends meanwhile is left out.
///
/// NotFound, InvalidArgument: `root` is no process that could be checkpointed.
Result<DumpCheck> CheckDump(pid_t root, const Options& options,
                            const CompareMounts& compare_mounts = {},
                            MemoryLook look = MemoryLook::kWhole);

/// What a restore that makes the tree's namespaces again (Options::own_namespaces) has to be told, a sentence each.
std::vector<std::string> NeedsOfRestore(pid_t root);

}  // namespace stasis::engine
