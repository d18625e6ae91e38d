// The descriptor table of a process under restore, and how many we may have ourselves meanwhile.
#pragma once

#include <cstddef>
#include <span>

#include "engine/base/status.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Gives `process` exactly the descriptors of its image: `our_fds` are ours for the same files, in the same
/// order. About one remote call a descriptor, fewer where the numbers have no gaps. Its soft limit of open
/// files is the hard one afterwards. FailedPrecondition: the hard limit is too low for a number.
Status MakeDescriptorTable(RestoredProcess& process, std::span<const int> our_fds);

/// Lets us have as many descriptors as the restore of `open_files` takes. ResourceExhausted: the hard limit is lower.
Status RaiseOurLimit(std::size_t open_files);

}  // namespace stasis::engine
