// What the engine cannot do without, of the kernel of this machine.
#pragma once

#include "engine/base/status.h"

namespace stasis::node {

/// FailedPrecondition: no container could be checkpointed here, and why. What this process may not try is
/// taken for there: the pod of an installation has few rights, while the agent has all.
Status CheckKernel();

}  // namespace stasis::node
