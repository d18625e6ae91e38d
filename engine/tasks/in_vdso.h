// Threads that stopped in the kernel's own code.
#pragma once

#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

/// Whether a thread of `tree` stands in the vDSO: its checkpoint goes on by a kernel with the same one only. 0.1 ms for
/// each process that was running as it stopped, and none for those that wait.
bool HasThreadInVdso(const FrozenTree& tree);

}  // namespace stasis::engine
