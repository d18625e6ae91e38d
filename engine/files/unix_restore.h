// The restore half of AF_UNIX sockets; unix_socket.cc is the other.
#pragma once

#include <cstdint>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// UnixSkEntry.uflags: a peer outside the tree, no file of it.
inline constexpr std::uint32_t kUnixExternal = 1;

/// The socket of `file`; the first call makes and binds all those of the images.
Result<UniqueFd> RestoreUnixSocket(const image::FileEntry& file, FileRestoreContext& context);

/// Sends what waited in their queues, connects datagram sockets, shuts what was shut.
Status CompleteUnixSockets(FileRestoreContext& context);

}  // namespace stasis::engine
