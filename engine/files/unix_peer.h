// Unix sockets whose other side is told of the process that it was (SO_PEERCRED).
#pragma once

#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"
#include "engine/image/schema/sockets.pb.h"

namespace stasis::engine {

/// What the other side of `entry` was told, or null.
const image::StasisCredentials* PeerOf(const image::UnixSkEntry& entry);

/// True for the process that acts for us anyway.
bool IsRoot(const image::StasisCredentials& who, FileRestoreContext& context);

/// socketpair(2), as the process that `entry` tells of.
Result<std::pair<UniqueFd, UniqueFd>> SocketPair(const image::UnixSkEntry& entry,
                                                 FileRestoreContext& context);

/// listen(2) as `who`, or as us where that is null or cannot be, which is noted.
Status Listen(int fd, int backlog, const image::StasisCredentials* who,
              FileRestoreContext& context);

/// In the same way connect(2) to our `peer`, a socket that was bound to `name`.
Status ConnectTo(int fd, int peer, const std::string& name, const image::StasisCredentials* who,
                 FileRestoreContext& context);

}  // namespace stasis::engine
