// A container's /dev/shm: memory of the pod's with names, shm_overview(7) and sem_overview(7).
#pragma once

#include "archive/archive.h"
#include "archive/archive_writer.h"
#include "cri/container_facts.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// Writes what is in /dev/shm of the container as member `devshm-checkpoint.tar`, Podman's name for it; none
/// where it is empty or no tmpfs. To be called while the container stands still. ResourceExhausted: more than
/// the 64 MiB that such a file system has by default.
Status WriteSharedMemory(const ContainerFacts& facts, archive::ArchiveWriter& writer);

/// Puts it back. What another container of the pod has there already stays, with a line in the log.
Status RestoreSharedMemory(const ContainerFacts& facts, const archive::Archive& checkpoint);

}  // namespace stasis::cri
