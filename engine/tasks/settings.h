// Settings of tasks that CRIU's format has no place for, and that a program would miss.
#pragma once

#include "engine/base/status.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/restore_attributes.h"
#include "engine/tracee/call_batch.h"

namespace stasis::engine {

/// Timer slack, I/O priority and their like of a stopped thread, into its core image; only what is not the
/// default. For any thread of ours, not only the tracer's.
Status ReadSettings(const FrozenThread& thread, image::ThreadCoreEntry& core);
/// The core dump filter of a stopped process, and its personality, which `core` has already.
Status ReadSettings(const FrozenProcess& process, image::TaskCoreEntry& core);
/// Adds what only the process itself can tell: memory-deny-write-execute, pages that are merged.
void AskSettings(CallBatch& batch, image::TaskCoreEntry& core);

/// Puts back the settings of a thread, by the thread itself. A priority that this container may not have
/// becomes a note.
Status RestoreSettings(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes);
/// Puts back the settings of a process, its personality among them. Memory must be in place: the
/// personality changes what mmap(2) gives, and memory-deny-write-execute what it takes.
Status RestoreSettings(RestoredProcess& process);

}  // namespace stasis::engine
