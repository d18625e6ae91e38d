// userfaultfd(2) of another process, used from here: which of its pages are written, and what it does to its
// mappings.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/page_ranges.h"
#include "engine/proc/maps.h"
#include "engine/tracee/frozen_tree.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// `count` userfaultfds for the memory of `process`, which stands still, with asynchronous write-protection
/// still to be chosen (StartUserfault).
Result<std::vector<UniqueFd>> MakeUserfaultfds(FrozenProcess& process, int count);

/// One for the memory of the process that `remote` makes calls in, which is `pid`; still without UFFDIO_API.
Result<UniqueFd> MakeUserfaultfd(RemoteSyscalls& remote, pid_t pid);

/// With asynchronous write-protection and `events` (UFFD_FEATURE_EVENT_*). Unimplemented: this kernel cannot
/// (Linux 6.7).
Status StartUserfault(int fd, std::uint64_t events = 0);

/// False when the range cannot be watched, or is by somebody else (EBUSY), or has gone. Of a process that runs a part
/// of an area could be all that is left in `range`, which splits it.
bool WatchRange(int fd, const PageRange& range);

/// Ends the watch of `areas`, in steps of some 3 ms where they are large. The process, which may run, has `now`: some
/// of them may be one by now. Of an area that the program has resized the watch ends when `fd` is closed.
void UnwatchAreas(int fd, std::span<const PageRange> areas, const std::vector<Vma>& now);
/// ... at once, for areas that would stay in pieces.
void UnwatchWhole(int fd, const PageRange& range);

}  // namespace stasis::engine
