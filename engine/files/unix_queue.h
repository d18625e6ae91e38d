// What waits to be received on an AF_UNIX socket.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The most bytes that may wait on one socket; far above what any limit of the kernel's lets
/// happen.
inline constexpr std::uint64_t kUnixQueueLimitBytes = std::uint64_t{16} << 20;

/// Reads the messages that wait on `file`, which keeps them; they stay where they are too. The files in them.
Result<std::vector<int>> FilesInUnixQueue(OpenFile& file);

/// Adds the messages that were read to "sk-queues".
Status DumpUnixQueue(const OpenFile& file, FileDumpContext& context);

/// True when messages of the images wait on file `id`.
Result<bool> HasUnixQueue(std::uint32_t id, FileRestoreContext& context);

/// A socket that sends to the one under restore: connected to it, or by its address.
struct UnixSender {
  int fd = -1;
  std::vector<std::byte> address;  ///< Empty: it is connected.
};
/// Sends the messages that waited on file `id`, each through the socket that `sender_of` gives for the name
/// of who had sent it ("": nameless).
Status RestoreUnixQueue(std::uint32_t id,
                        const std::function<Result<UnixSender>(const std::string&)>& sender_of,
                        FileRestoreContext& context);

}  // namespace stasis::engine
