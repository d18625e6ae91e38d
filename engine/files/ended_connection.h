// TCP connections that have ended, before the checkpoint or by it.
#pragma once

#include <string_view>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

enum class Ending {
  kReset,   ///< By the peer: read(2) says ECONNRESET, epoll(7) EPOLLERR and EPOLLHUP.
  kClosed,  ///< By both sides: read(2) gives 0, write(2) says EPIPE, epoll(7) EPOLLHUP.
};

/// A TCP socket of `family` whose connection ended so, with `received` to be read first. Needs the
/// loopback interface of the network namespace to be up.
Result<UniqueFd> MakeEndedConnection(int family, Ending ending, std::string_view received,
                                     FileRestoreContext& context);

/// One that reads and writes as if its connection was closed, but never had any. Needs nothing.
Result<UniqueFd> MakeShutSocket(int family, FileRestoreContext& context);

}  // namespace stasis::engine
