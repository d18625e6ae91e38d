// The descriptor table of a process under restore.
#pragma once

#include <span>

#include "engine/base/status.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Gives `process` exactly the descriptors of its image: `our_fds` are ours for the same files, in the same
/// order. About one remote call a descriptor, fewer where the numbers have no gaps. Its soft limit of open
/// files is the hard one afterwards. FailedPrecondition: the hard limit is too low for a number.
Status MakeDescriptorTable(RestoredProcess& process, std::span<const int> our_fds);

}  // namespace stasis::engine
