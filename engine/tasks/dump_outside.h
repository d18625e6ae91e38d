// What /proc and ptrace(2) tell of a task that stands still, without anything running in it.
#pragma once

#include "engine/base/status.h"
#include "engine/files/file_kind.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// Reads everything of `process` but its memory and files. Unimplemented for what no image can
/// hold.
Result<DumpedProcess> ReadOutside(FrozenProcess& process);

/// Reads the pending signals of `process` once more. True when others are pending than were.
Result<bool> ReadSignalsAgain(DumpedProcess& process);

}  // namespace stasis::engine
