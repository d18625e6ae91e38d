// In which order, and by whom, the processes of a tree are forked so that each ends up with its parent and
// in its session. Pure computation: of a dump to refuse what no restore could make, and of the restore.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

struct PlannedProcess {
  pid_t pid = 0;
  std::size_t parent = 0;  ///< Index; of the first process, the root, without meaning.
  pid_t session = 0;
  std::uint32_t files_id = 0, fs_id = 0;  ///< Equal: shared by clone(2). 0: none, of a zombie.
  int exit_signal = SIGCHLD;              ///< What its parent gets when it ends.
};

/// Nodes are numbered: the processes as they came, then stand-ins and helpers that end again.
struct ForkPlan {
  struct Extra {
    pid_t pid = 0;         ///< That of a session whose leader is gone; 0: any free one.
    std::size_t like = 0;  ///< The process whose program it runs.
  };
  struct Step {
    enum class Kind { kFork, kSetsid };
    Kind kind = Kind::kFork;
    std::size_t node = 0;
    std::size_t source = 0;    ///< Who forks.
    bool sibling = false;      ///< By CLONE_PARENT: a child of the source's parent.
    unsigned long shared = 0;  ///< CLONE_FILES, CLONE_FS.
    std::size_t like = 0;      ///< The process whose program the source runs.
  };
  struct End {
    std::size_t node = 0;
    std::size_t waiter = 0;  ///< Its parent by then.
    std::size_t reaper = 0;  ///< The process that its children go to.
  };
  std::vector<Extra> extras;
  std::vector<Step> steps;
  std::vector<End> ends;  ///< When all steps are done, and process groups are joined.
};

/// `processes` come parents first. The root is in `root_session` when it starts. Unimplemented: no order
/// is known; names the process.
Result<ForkPlan> PlanForks(std::span<const PlannedProcess> processes, pid_t root_session);

}  // namespace stasis::engine
