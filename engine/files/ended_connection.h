// TCP connections that have ended, before the checkpoint or by it.
#pragma once

#include <string_view>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"
#include "engine/files/inet_address.h"

namespace stasis::engine {

enum class Ending {
  kReset,   ///< By the peer: read(2) says ECONNRESET, epoll(7) EPOLLERR and EPOLLHUP.
  kClosed,  ///< By both sides: read(2) gives 0, write(2) says EPIPE, epoll(7) EPOLLHUP.
};

/// A TCP socket of `family` whose connection ended so, with `received` to be read first. Needs the
/// loopback interface of the network namespace to be up.
Result<UniqueFd> MakeEndedConnection(int family, Ending ending, std::string_view received,
                                     FileRestoreContext& context);

/// The same of the connection of `entry` from `local` to `remote`, of which the program can still ask (SO_PEERNAME).
/// Nothing is sent to the peer. Needs CAP_NET_ADMIN and CAP_NET_RAW over that network namespace, its loopback
/// interface, the address `local`, a route, and no connection between these two that is there or has just been.
Result<UniqueFd> MakeEndedConnectionTo(const image::InetSkEntry& entry, const InetAddress& local,
                                       const InetAddress& remote, Ending ending,
                                       std::string_view received, FileRestoreContext& context);

/// One that reads and writes as if its connection was closed, but never had any. Needs nothing.
Result<UniqueFd> MakeShutSocket(int family, FileRestoreContext& context);

}  // namespace stasis::engine
