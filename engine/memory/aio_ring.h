// Asynchronous I/O contexts, io_setup(2).
#pragma once

#include <cstdint>

#include "engine/base/status.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// The context whose ring a process has at `start`; its memory is open as `mem_fd`. Waits a moment for requests
/// under way to end. Unimplemented: they do not, or that is no ring of a known kind.
Result<image::AioRingEntry> ReadAioRing(int mem_fd, std::uint64_t start, std::uint64_t size);

/// Makes the context anew whose ring was at `start`, where its content is by now, as ordinary memory.
Status RestoreAioRing(RestoredProcess& process, std::uint64_t start, std::uint64_t size);

}  // namespace stasis::engine
