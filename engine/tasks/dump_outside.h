// What ptrace(2) and /proc tell of a task that stands still, without anything running in it.
#pragma once

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/files/file_kind.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// Reads what ptrace(2) tells of `process`, and what was read when it was frozen. Unimplemented for what no image can
/// hold.
Result<DumpedProcess> ReadOutside(FrozenProcess& process);

/// The image of a thread, when all of it is read: with its registers, and what its status and the kernel's structures say,
/// in `ids` of its user namespace. Nothing of it is left in `thread`.
image::CoreEntry TakeCore(DumpedThread& thread, const UserIds& ids);

/// Adds what system calls tell of any thread: scheduling and robust futexes; by any thread of ours.
/// Unimplemented: it runs under SCHED_DEADLINE.
Status ReadByCalls(const FrozenThread& thread, image::ThreadCoreEntry& core);

/// Adds what files of /proc alone tell of a process, not of its threads; by any thread of ours.
Status ReadFilesOfProc(const FrozenProcess& process, image::TaskCoreEntry& core,
                       image::MmEntry& mm);

/// Reads the pending signals of `process` once more: those of the process, and `of_threads` each thread's own.
/// True when others are pending than were.
Result<bool> ReadSignalsAgain(DumpedProcess& process, bool of_threads);

}  // namespace stasis::engine
