// What somebody told the bridges of a network namespace: VLANs of their ports, fixed addresses and groups.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// To compare with those of another namespace whose devices have the same numbers; sorted. Without what they learned.
Result<std::vector<std::string>> ReadBridgeTables(int ns_fd);

}  // namespace stasis::engine
