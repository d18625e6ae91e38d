// What a dump reads of the kernel before anybody waits for it.
#pragma once

#include <sys/types.h>

#include <optional>

#include "engine/tasks/kernel_tasks.h"

namespace stasis::engine {

/// For the tree under `root`, as far as is to be seen at once: the kernel's description of its structures where it has
/// rings of io_uring, which takes some 20 ms, and its tasks where a process has many threads. Nothing where they are
/// few, or this kernel does not let us.
std::optional<KernelTasks> OpenKernelFor(pid_t root);

}  // namespace stasis::engine
