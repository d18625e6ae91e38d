// Mounts that processes of a container made, changed or took away.
#pragma once

#include <span>

#include "cri/container_facts.h"
#include "engine/mounts/mount_changes.h"

namespace stasis::cri {

/// What is mounted in the container, whose first process runs or stands still, and was not by what its
/// specification says; a volume's own mounts come with it. Facts are copied.
engine::CompareMounts CompareWithSpecification(const ContainerFacts& facts);

}  // namespace stasis::cri
