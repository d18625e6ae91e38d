// Mappings at an address of our choice, of files that let the kernel alone choose one.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/status.h"
#include "engine/memory/restore_layout.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

struct ChosenMapping {
  AddressRange range;
  int fd = -1;  ///< In the process.
  int prot = 0;
  std::uint64_t offset = 0;
};

/// Maps all `mappings`, MAP_SHARED. Their places must be free. AlreadyExists: one is not.
Status MapIntoHoles(RestoredProcess& process, const std::vector<ChosenMapping>& mappings);

}  // namespace stasis::engine
