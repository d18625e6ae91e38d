// Time does not run backwards in a restored tree.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Where this machine's CLOCK_MONOTONIC or CLOCK_BOOTTIME is behind what the tree of `source` had read (after
/// a reboot, or on a machine that was started later), `root`, which has one thread and no memory that
/// matters, gets a time namespace in which they are not. `program` is stasis-placeholder.
///
/// FailedPrecondition: the process has no right to one (CAP_SYS_ADMIN), and not `may_go_back`: programs that
/// wait until a point in time would wait for as long as the machine is behind. With `may_go_back` that
/// becomes a sentence in `notes`. A tree that had a time namespace to itself (`own_namespace`) gets one in any
/// case, where the clocks go on from what they were.
Status RestoreClocks(RestoredProcess& root, const ImageSource& source, const std::string& program,
                     bool may_go_back, std::vector<std::string>& notes, bool own_namespace = false);

}  // namespace stasis::engine
