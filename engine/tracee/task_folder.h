// Who belongs to a process, by /proc.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace stasis::engine {

/// "/proc/PID/task/TID".
std::string TaskFolder(pid_t pid, pid_t tid);
/// The threads of `pid`, and the children of them all; none when it is gone. Both may change at once unless
/// they stand still. proc_pid_task_children(5)
std::vector<pid_t> ThreadsOf(pid_t pid);
std::vector<pid_t> ChildrenOf(pid_t pid);

}  // namespace stasis::engine
