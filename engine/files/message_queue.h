// POSIX message queues: regular files of the file system "mqueue", mq_overview(7).
#pragma once

#include <string>

#include "engine/files/file_kind.h"

namespace stasis::engine {

bool IsMessageQueue(const OpenFile& file);

/// As for FileKind. Only the entry of the first file of a queue has what is in it.
Result<image::FileEntry> DumpMessageQueue(const OpenFile& file, FileDumpContext& context);
Result<UniqueFd> RestoreMessageQueue(const image::FileEntry& entry, FileRestoreContext& context);
/// Makes the queues that nobody has open.
Status CompleteMessageQueues(FileRestoreContext& context);

/// Adds an entry for each queue of the IPC namespace of `pid` that no file of the tree is: of a tree that has
/// this namespace to itself.
Status DumpIdleQueues(pid_t pid, FileDumpContext& context);

}  // namespace stasis::engine
