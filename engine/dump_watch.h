// Whether a dump is still wanted: asked between processes and every few MiB of memory.
#pragma once

#include "engine/dump.h"

namespace stasis::engine {

/// Cancelled or DeadlineExceeded once `request` says so.
Status StillWanted(const DumpRequest& request);

}  // namespace stasis::engine
