// The clocks of a time namespace, time_namespaces(7).
#pragma once

#include <chrono>

#include "engine/base/status.h"

namespace stasis::engine {

struct Clocks {
  std::chrono::nanoseconds monotonic{};  ///< CLOCK_MONOTONIC
  std::chrono::nanoseconds boottime{};   ///< CLOCK_BOOTTIME
};

/// What the time namespace of a task adds to the machine's clocks; `proc_fd` is its /proc/PID. Zero where
/// the kernel has no time namespaces.
Result<Clocks> ClockOffsets(int proc_fd);

/// The clocks as that task reads them now.
Result<Clocks> ReadClocks(int proc_fd);

}  // namespace stasis::engine
