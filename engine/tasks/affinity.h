// Which processors a thread was told to run on (sched_setaffinity(2)).
#pragma once

#include <vector>

#include "engine/base/status.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/restore_attributes.h"

namespace stasis::engine {

/// Notes the processors of each thread that may not use all that its cpuset has.
Status ReadAffinities(std::vector<DumpedProcess>& processes);

/// Puts them back, as far as they are there and the cpuset has them; else a note.
Status RestoreAffinity(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes);

}  // namespace stasis::engine
