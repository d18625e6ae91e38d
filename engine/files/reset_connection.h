// TCP connections that do not survive a checkpoint.
#pragma once

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// A TCP socket of `family` as a peer's reset leaves it: read(2) says ECONNRESET, epoll(7) EPOLLERR
/// and EPOLLHUP. Needs the loopback interface of the network namespace to be up.
Result<UniqueFd> MakeResetConnection(int family, FileRestoreContext& context);

}  // namespace stasis::engine
