// The unix sockets on which stasisd and the runtime are called.
#pragma once

#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

/// A listening socket, and the path to be removed when the service ends (empty: it is systemd's).
struct Listener {
  UniqueFd socket;
  std::string path;
};

/// The path in "unix:///run/x.sock" or "/run/x.sock". InvalidArgument for anything else.
Result<std::string> UnixSocketPath(const std::string& endpoint);

/// The socket that systemd handed over (sd_listen_fds(3)), or else a new one at `endpoint`, mode
/// 0660. A socket left behind by a dead process is replaced; AlreadyExists: one that is still
/// answered.
Result<Listener> Listen(const std::string& endpoint);

/// A connection to whoever listens at `path`, that does not block. Unavailable when nobody does.
Result<UniqueFd> ConnectTo(const std::string& path);

}  // namespace stasis::cri
