// Mounts that a container made by itself.
#pragma once

#include "cri/container_facts.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// Unimplemented, naming the place, when the container has a mount that its runtime did not make: a restored
/// container would lack it, and what it holds.
Status RefuseOwnMounts(const ContainerFacts& facts);

}  // namespace stasis::cri
