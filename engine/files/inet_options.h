// Options of internet sockets: IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP.
#pragma once

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Fills v6only, ip_opts, tcp_opts and our own list of `entry`, whose family and protocol are set.
/// Unimplemented for what a restore may not set, or cannot.
Status DumpInetOptions(const OpenFile& file, image::InetSkEntry& entry);

/// Sets those that bind(2) looks at: IPV6_V6ONLY, IP_FREEBIND, IP_TRANSPARENT. Those that need a right
/// are set by `actor`.
Status RestoreInetOptionsBeforeBind(int fd, const image::InetSkEntry& entry, FileActor& actor);

/// Sets the others but SOL_SOCKET's, and joins multicast groups.
Status RestoreInetOptions(int fd, const image::InetSkEntry& entry, FileActor& actor);

/// Sets what stands in the way of RestoreSocketOptions.
Status RestoreLastInetOptions(int fd, const image::InetSkEntry& entry);

}  // namespace stasis::engine
