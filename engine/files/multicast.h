// Multicast groups that internet sockets joined.
#pragma once

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Adds the groups of `file` to `entry`, whose family and type are set.
Status DumpMemberships(const OpenFile& file, image::InetSkEntry& entry);

/// Joins them. FailedPrecondition: no such network interface here.
Status RestoreMemberships(int fd, const image::InetSkEntry& entry);

}  // namespace stasis::engine
