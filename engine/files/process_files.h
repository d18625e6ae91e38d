// Files that show the process which opened them: pidfds, what is below /proc/PID, /dev/tty. A restore opens
// them when the process is there, and in it.
#pragma once

#include <sys/types.h>

#include <functional>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/checkpoint_images.h"
#include "engine/files/pidfd.h"
#include "engine/image/schema/files.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Is `entry` such a file, of a process of `images`? It shows the process and the memory that were there when
/// it was opened, so it waits for those of the checkpoint; /dev/tty is the opener's terminal.
bool IsOfProcess(const image::FileEntry& entry, const CheckpointImages& images);

/// Opens such a file in `process`, which has yet to get its descriptors. `host_pid` as OpenPidfd wants it.
Result<UniqueFd> OpenOfProcess(RestoredProcess& process, const image::FileEntry& entry,
                               const std::function<pid_t(pid_t)>& host_pid, DeadProcesses& dead);

}  // namespace stasis::engine
