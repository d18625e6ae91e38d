// What a dump reads of the kernel before anybody waits for it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>

#include "engine/base/kernel_btf.h"
#include "engine/tasks/kernel_tasks.h"

namespace stasis::engine {

struct KernelAhead {
  std::shared_ptr<const KernelBtf> structures;  ///< Kept for who asks for it later.
  std::optional<KernelTasks> tasks;
};

/// For the tree under `root`, as far as is to be seen at once: the description of the kernel's structures where it has
/// rings of io_uring, and tasks where a process has many threads. Nothing where this kernel does not let us.
KernelAhead OpenKernelFor(pid_t root);

}  // namespace stasis::engine
