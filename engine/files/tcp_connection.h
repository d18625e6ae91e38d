// TCP connections that go on after a restore.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"
#include "engine/files/inet_address.h"
#include "engine/files/tcp_stream.h"

namespace stasis::engine {

/// A connection that is made and filled, takes no packets and is in repair mode: closing it now sends
/// nothing to the peer.
struct PendingConnection {
  UniqueFd fd;
  image::InetSkEntry entry;
  TcpStream stream;
  InetAddress local, remote;
};

/// A descriptor for the connection of `entry`; what is left to do is added to context.Connections().
/// FailedPrecondition: the machine has not the address. PermissionDenied: no CAP_NET_ADMIN over the
/// network namespace.
Result<UniqueFd> MakeConnection(const image::InetSkEntry& entry, TcpStream stream,
                                const InetAddress& local, const InetAddress& remote,
                                FileRestoreContext& context);

/// Lets all of them go on. Their peers hear of them from here on. `make_rules`, unless empty, makes the rules of their
/// network, which may drop what a connection is made again with, and what would have ended one: it is called in between.
Status ResumeConnections(std::vector<PendingConnection>& connections,
                         const std::function<Status()>& make_rules = {});

}  // namespace stasis::engine
