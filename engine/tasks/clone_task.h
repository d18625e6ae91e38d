// New tasks of processes under restore, with the ids that they had.
#pragma once

#include <sys/types.h>

#include <span>
#include <vector>

#include "engine/tasks/pid_reserver.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Makes a new task from `process` by clone(2) with `flags`, with the id `wanted` in its namespace.
/// `parent`: whose child it is with CLONE_PARENT, which has no exit signal in `flags`.
Result<Tracee> CloneWithId(RestoredProcess& process, PidReserver& reserver, unsigned long flags,
                           pid_t wanted, RestoredProcess* parent = nullptr);

/// Makes threads of `process`, of which clone(2) with `flags` makes one, with the ids `wanted`. `threads` has those that
/// are made, stopped, in their order, also on failure.
Status CloneThreads(RestoredProcess& process, PidReserver& reserver, unsigned long flags,
                    std::span<const pid_t> wanted, std::vector<Tracee>& threads);

}  // namespace stasis::engine
