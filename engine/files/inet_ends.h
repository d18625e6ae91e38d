// The two addresses of an internet socket, in its image.
#pragma once

#include "engine/base/status.h"
#include "engine/files/inet_address.h"
#include "engine/image/schema/sockets.pb.h"

namespace stasis::engine {

/// Puts the addresses of socket `fd` into `entry`, that of the other side as zeros where there is none, and
/// the name of the interface that one of them belongs to.
Status DumpEnds(int fd, image::InetSkEntry& entry);
/// Adds the peer that a TCP connection had which has ended.
Status DumpLastPeer(int fd, image::InetSkEntry& entry);

/// The addresses of `entry`, without interface. DataLoss: there is no such address.
Result<InetAddress> LocalEnd(const image::InetSkEntry& entry);
Result<InetAddress> RemoteEnd(const image::InetSkEntry& entry);

/// Gives `address` the interface of `entry`, by its number in the namespace of socket `fd`.
Status RestoreScope(int fd, const image::InetSkEntry& entry, InetAddress& address);

struct InetEnds {
  InetAddress local, remote;
};

/// Both of `entry`, with their interface if there is a socket `fd` to ask for it (else -1).
Result<InetEnds> EndsOf(int fd, const image::InetSkEntry& entry);

}  // namespace stasis::engine
