// Brings a new ring of io_uring to the positions of an old one.
#pragma once

#include <cstdint>

#include "engine/base/status.h"
#include "engine/files/io_uring.h"
#include "engine/image/schema/io_uring.pb.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// By calls of `remote`, in whose process the ring is `number`; `ring` and `entries` are ours of its memory, whose content
/// is lost. `cq_head`: up to where completions were fetched.
Status AdvanceRing(RemoteSyscalls& remote, const OneRun& how, int number,
                   const image::IoUringEntry& old, const RingMemory& ring,
                   const RingMemory& entries, std::uint32_t cq_head);

}  // namespace stasis::engine
