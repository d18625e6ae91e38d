// Settings of tasks that CRIU's format has no place for, and that a program would miss.
#pragma once

#include "engine/base/status.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/restore_attributes.h"

namespace stasis::engine {

/// Timer slack and I/O priority of a stopped thread, into its core image; only what is not the default.
Status ReadSettings(const FrozenThread& thread, image::ThreadCoreEntry& core);
/// The core dump filter of a stopped process, and its personality, which `core` has already.
Status ReadSettings(const FrozenProcess& process, image::TaskCoreEntry& core);
/// What only the process itself can tell: memory-deny-write-execute, pages that are merged.
Status AskSettings(RemoteSyscalls& remote, image::TaskCoreEntry& core);

/// Puts back the settings of a thread, by the thread itself. A priority that this container may not have
/// becomes a note.
Status RestoreSettings(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes);
/// Puts back the settings of a process, its personality among them. Memory must be in place: the
/// personality changes what mmap(2) gives, and memory-deny-write-execute what it takes.
Status RestoreSettings(RestoredProcess& process);

}  // namespace stasis::engine
