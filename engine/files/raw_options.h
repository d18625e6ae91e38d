// Options of raw sockets: raw(7), icmp(7).
#pragma once

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Fills `ip_opts.raw` of `entry`, whose family, type and protocol are set.
Status DumpRawOptions(int fd, image::InetSkEntry& entry);
Status RestoreRawOptions(int fd, const image::InetSkEntry& entry);

}  // namespace stasis::engine
