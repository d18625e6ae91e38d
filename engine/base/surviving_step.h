// Work that is not left half done when this program is killed.
#pragma once

#include <functional>

#include "engine/base/status.h"

namespace stasis {

/// Runs `step` in a process that shares our memory and descriptors and outlives a SIGKILL of ours, and waits
/// for its end. `step` makes system calls only: no allocation, no lock. It gives 0 or an errno.
Status SurvivingStep(const char* name, const std::function<int()>& step);

}  // namespace stasis
