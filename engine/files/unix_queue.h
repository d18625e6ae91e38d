// What waits to be received on an AF_UNIX socket.
#pragma once

#include <cstdint>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The most bytes that may wait on one socket; far above what any limit of the kernel's lets
/// happen.
inline constexpr std::uint64_t kUnixQueueLimitBytes = std::uint64_t{16} << 20;

/// Adds the messages that wait on `file`, of SOCK_* `type`, to "sk-queues"; they stay where they
/// are. Unimplemented when descriptors are among them.
Status DumpUnixQueue(const OpenFile& file, int type, FileDumpContext& context);

/// Sends the messages that waited on file `id` through `sender`, the other end of its connection.
Status RestoreUnixQueue(int sender, std::uint32_t id, FileRestoreContext& context);

}  // namespace stasis::engine
